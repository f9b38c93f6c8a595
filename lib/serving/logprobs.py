"""Log-probabilities in OpenAI's two shapes, and the prompt's in vLLM's. Introduced in chapter 5."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lib.serving.tokenizer_pool import TokenizerPool

_LEAST = -9999.0  # JSON has no -Infinity
Row = (
    Mapping[int, float] | None
)  # by token id, the token itself first; None: the prompt's first token
Name = Callable[[int], str]


def token_names(tokens: TokenizerPool, as_ids: bool | None) -> Name:
    """How tokens are called: by their text, or as "token_id:5" (`return_tokens_as_token_ids`)."""
    return (lambda token_id: f"token_id:{token_id}") if as_ids else tokens.token_text


def completion_logprobs(
    token_ids: Sequence[int],
    logprobs: Sequence[Row],
    tokens: TokenizerPool,
    offset: int,
    top: int | None = None,
    name: Name | None = None,
) -> tuple[dict[str, Any], int]:
    """/v1/completions': parallel lists; and the text offset after them. `offset`: where the first token begins.

    top: at most so many per token beside the token's own; None: all that there are.
    """
    name = name or tokens.token_text
    offsets = []
    for token_id in token_ids:
        offsets.append(offset)
        offset += len(tokens.token_text(token_id))
    return {
        "tokens": [name(token_id) for token_id in token_ids],
        "token_logprobs": [
            None if row is None else _finite(row[i]) for i, row in zip(token_ids, logprobs)
        ],
        "top_logprobs": [
            None if row is None else {name(i): _finite(v) for i, v in _best(own, row, top).items()}
            for own, row in zip(token_ids, logprobs)
        ],
        "text_offset": offsets,
    }, offset


def prompt_logprobs(
    token_ids: Sequence[int], logprobs: Sequence[Row], top: int, name: Name
) -> list[dict[str, Any] | None]:
    """vLLM's: null for the first token, then {token id: {logprob, rank, decoded_token}}, the prompt's token first.

    rank: 1 for the most likely token; null for the prompt's own where it is not among the `top`.
    """
    found: list[dict[str, Any] | None] = []
    for own, row in zip(token_ids, logprobs):
        if row is None:
            found.append(None)
            continue
        kept = _best(own, row, top)
        order = sorted(row, key=lambda i: -row[i])[:top]
        ranks = {token_id: rank for rank, token_id in enumerate(order, 1)}
        found.append(
            {
                str(i): {"logprob": _finite(v), "rank": ranks.get(i), "decoded_token": name(i)}
                for i, v in kept.items()
            }
        )
    return found


def chat_logprobs(
    token_ids: Sequence[int],
    logprobs: Sequence[dict[int, float]],
    tokens: TokenizerPool,
    top: int,
    name: Name | None = None,
) -> dict[str, Any]:
    """/v1/chat/completions': one object per token, with the `top` most likely ones inside."""
    name = name or tokens.token_text
    return {
        "content": [
            {
                **_entry(token_id, row[token_id], tokens, name),
                "top_logprobs": [
                    _entry(i, value, tokens, name)
                    for i, value in sorted(row.items(), key=lambda item: -item[1])[:top]
                ],
            }
            for token_id, row in zip(token_ids, logprobs)
        ]
    }


def _best(own: int, row: Mapping[int, float], top: int | None) -> Mapping[int, float]:
    if top is None:
        return row
    best = sorted(row.items(), key=lambda item: -item[1])[:top]
    return {own: row[own], **dict(best)}


def _entry(token_id: int, value: float, tokens: TokenizerPool, name: Name) -> dict[str, Any]:
    return {
        "token": name(token_id),
        "logprob": _finite(value),
        "bytes": list(tokens.token_bytes(token_id)),
    }


def _finite(value: float) -> float:
    return max(value, _LEAST) if value == value else _LEAST
