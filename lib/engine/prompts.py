"""Prompts as users give them, as the token ids that the engine takes. Introduced in chapter 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lib.engine.chat_template import encode_chat


def as_token_ids(prompt: str | Sequence[int], tokenizer: Any, vocab_size: int) -> list[int]:
    """Tokenise text, or check ids. Raises ValueError for an empty prompt or an id outside the vocabulary."""
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError(
                f"prompt must be a list of token ids: this model has no tokenizer, got {prompt[:40]!r}"
            )
        token_ids = tokenizer.encode(prompt)
    else:
        try:
            token_ids = list(prompt)
        except TypeError:
            raise ValueError(
                f"prompt must be a string or a list of token ids, got {prompt!r}"
            ) from None
    if not token_ids:
        raise ValueError(f"prompt must hold at least one token, got {prompt!r}")
    for token_id in token_ids:
        if (
            not isinstance(token_id, int)
            or isinstance(token_id, bool)
            or not 0 <= token_id < vocab_size
        ):
            raise ValueError(
                f"prompt token ids must be integers >= 0 and < {vocab_size}, got {token_id!r}"
            )
    return token_ids


def chat_token_ids(tokenizer: Any, messages: Sequence[dict[str, Any]]) -> list[int]:
    """A conversation through the model's chat template, up to where the assistant's turn begins."""
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "messages need a model whose tokenizer has a chat template, and this one has none"
        )
    if not messages:
        raise ValueError("messages must hold at least one message, got []")
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise ValueError(f"messages must be dicts with 'role' and 'content', got {message!r}")
    return encode_chat(tokenizer, messages)
