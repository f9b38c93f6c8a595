"""Log-probabilities in OpenAI's two shapes. Introduced in chapter 5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lib.serving.tokenizer_pool import TokenizerPool

_LEAST = -9999.0  # JSON has no -Infinity


def completion_logprobs(
    token_ids: Sequence[int],
    logprobs: Sequence[dict[int, float]],
    tokens: TokenizerPool,
    offset: int,
) -> tuple[dict[str, Any], int]:
    """/v1/completions': parallel lists; and the text offset after them. `offset`: where the first token begins."""
    texts, offsets = [], []
    for token_id in token_ids:
        texts.append(tokens.token_text(token_id))
        offsets.append(offset)
        offset += len(texts[-1])
    return {
        "tokens": texts,
        "token_logprobs": [_finite(row[i]) for i, row in zip(token_ids, logprobs)],
        "top_logprobs": [
            {tokens.token_text(i): _finite(value) for i, value in row.items()} for row in logprobs
        ],
        "text_offset": offsets,
    }, offset


def chat_logprobs(
    token_ids: Sequence[int], logprobs: Sequence[dict[int, float]], tokens: TokenizerPool, top: int
) -> dict[str, Any]:
    """/v1/chat/completions': one object per token, with the `top` most likely ones inside."""
    return {
        "content": [
            {
                **_entry(token_id, row[token_id], tokens),
                "top_logprobs": [
                    _entry(i, value, tokens)
                    for i, value in sorted(row.items(), key=lambda item: -item[1])[:top]
                ],
            }
            for token_id, row in zip(token_ids, logprobs)
        ]
    }


def _entry(token_id: int, value: float, tokens: TokenizerPool) -> dict[str, Any]:
    return {
        "token": tokens.token_text(token_id),
        "logprob": _finite(value),
        "bytes": list(tokens.token_bytes(token_id)),
    }


def _finite(value: float) -> float:
    return max(value, _LEAST) if value == value else _LEAST
