"""Prompts as users give them, as the token ids that the engine takes. Introduced in chapter 1."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from lib.core.errors import InvalidRequest
from lib.engine.chat_template import encode_chat


def as_token_ids(
    prompt: str | Sequence[int], tokenizer: Any, vocab_size: int, add_special_tokens: bool = True
) -> list[int]:
    """Tokenise text, or check ids (also NumPy's), some 50 ns each.

    add_special_tokens: those that the tokenizer puts around a text, where it does. Raises InvalidRequest (param "prompt") for an empty prompt or an id outside the vocabulary.
    """
    if isinstance(prompt, str):
        if tokenizer is None:
            raise InvalidRequest(
                "prompt must be a list of token ids: this model has no tokenizer, "
                f"got {prompt[:40]!r}",
                param="prompt",
            )
        token_ids = tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
    else:
        try:
            token_ids = list(prompt)
        except TypeError:
            raise InvalidRequest(
                f"prompt must be a string or a list of token ids, got {prompt!r}", param="prompt"
            ) from None
    if not token_ids:
        raise InvalidRequest(f"prompt must hold at least one token, got {prompt!r}", param="prompt")
    # In whole passes: a prompt can have many thousand ids, and when served it is checked twice.
    kinds = set(map(type, token_ids))
    if kinds != {int} and all(issubclass(k, Integral) and k is not bool for k in kinds):
        token_ids, kinds = list(map(int, token_ids)), {int}
    if kinds != {int} or min(token_ids) < 0 or max(token_ids) >= vocab_size:
        wrong = next(
            i
            for i in token_ids
            if not isinstance(i, Integral) or isinstance(i, bool) or not 0 <= i < vocab_size
        )
        raise InvalidRequest(
            f"prompt token ids must be integers >= 0 and < {vocab_size}, got {wrong!r}",
            param="prompt",
        )
    return token_ids


def chat_token_ids(tokenizer: Any, messages: Sequence[dict[str, Any]], **how: Any) -> list[int]:
    """A conversation through the model's chat template, up to where the assistant's turn begins.

    how: the other arguments of `lib.engine.chat_template.encode_chat`. Raises InvalidRequest (param "messages").
    """
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise InvalidRequest(
            "messages need a model whose tokenizer has a chat template, and this one has none",
            param="messages",
        )
    if not messages:
        raise InvalidRequest("messages must hold at least one message, got []", param="messages")
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise InvalidRequest(
                f"messages must be dicts with 'role' and 'content', got {message!r}",
                param="messages",
            )
    return encode_chat(tokenizer, messages, **how)
