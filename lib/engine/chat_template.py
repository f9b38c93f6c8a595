"""Token ids of a conversation, in which only the chat template writes control tokens. Introduced in chapter 1."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any


def encode_chat(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Token ids of the messages through the chat template, up to where the assistant's turn begins.

    A special token that a message spells out, such as `<|im_end|>`, is encoded as ordinary text: it cannot end the
    message and begin another one in some other role. transformers would take it for the control token.
    """
    special = _special_tokens(tokenizer)
    contents = [m["content"] for m in messages if isinstance(m["content"], str)]
    if special is None or not any(special.search(content) for content in contents):
        text = _render(tokenizer, messages)
        return tokenizer.encode(text, add_special_tokens=False)  # the template wrote them
    # A mark inside each spelled-out token hides it from `special`, so that what this still finds is the template's.
    mark = next(c for c in map(chr, range(0xE000, 0xF900)) if not any(c in t for t in contents))
    text = _render(
        tokenizer,
        [
            {**m, "content": _hide(special, mark, m["content"])}
            if isinstance(m["content"], str)
            else m
            for m in messages
        ],
    )
    token_ids: list[int] = []
    end = 0
    for found in [*special.finditer(text), None]:
        between = text[end : found.start() if found else None].replace(mark, "")
        if between:
            token_ids += tokenizer.encode(
                between, add_special_tokens=False, split_special_tokens=True
            )
        if found:
            token_ids.append(tokenizer.convert_tokens_to_ids(found[0]))
            end = found.end()
    return token_ids


def _render(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)


def _special_tokens(tokenizer: Any) -> re.Pattern | None:
    """Matches each special token of more than one character; None if there is none."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    texts = {str(token) for token in added if token.special and len(str(token)) > 1}
    # The longest first: one may be the beginning of another.
    ordered = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def _hide(special: re.Pattern, mark: str, text: str) -> str:
    while special.search(text):  # again, because tokens may overlap
        text = special.sub(lambda found: found[0][0] + mark + found[0][1:], text)
    return text
