"""Token ids of a conversation, in which only the chat template writes control tokens. Introduced in chapter 1."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def encode_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of the messages through the chat template, up to where the assistant's turn begins.

    A special token that a message or tool spells out, such as `<|im_end|>`, is encoded as ordinary
    text: it cannot end the message and begin another one in some other role. transformers would take
    it for the control token. continue_final_message: the last message stays open, and the model goes
    on with it. template_kwargs: further variables of the template.
    """
    how = {
        "add_generation_prompt": add_generation_prompt,
        "continue_final_message": continue_final_message,
        **(template_kwargs or {}),
    }
    special = _special_tokens(tokenizer)
    contents = list(_strings([messages, tools, template_kwargs]))
    if special is None or not any(special.search(content) for content in contents):
        text = _render(tokenizer, messages, tools, how)
        return tokenizer.encode(text, add_special_tokens=False)  # the template wrote them
    # A mark inside each spelled-out token hides it from `special`, so that what this still finds is the template's.
    mark = next(c for c in map(chr, range(0xE000, 0xF900)) if not any(c in t for t in contents))
    text = _render(tokenizer, *(_hide(special, mark, part) for part in (messages, tools, how)))
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


def _render(tokenizer: Any, messages: Sequence[Any], tools: Any, how: Mapping[str, Any]) -> str:
    return tokenizer.apply_chat_template(list(messages), tools=tools, tokenize=False, **how)


def _special_tokens(tokenizer: Any) -> re.Pattern | None:
    """Matches each special token of more than one character; None if there is none."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    texts = {str(token) for token in added if token.special and len(str(token)) > 1}
    # The longest first: one may be the beginning of another.
    ordered = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def _strings(value: Any) -> Iterator[str]:
    """All strings in lists and dicts of any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _strings(key)
            yield from _strings(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _strings(inner)


def _hide(special: re.Pattern, mark: str, value: Any) -> Any:
    """The same value with a mark inside each special token that its strings spell out."""
    if isinstance(value, Mapping):
        return {
            _hide(special, mark, key): _hide(special, mark, inner) for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_hide(special, mark, inner) for inner in value]
    while isinstance(value, str) and special.search(value):  # again, because tokens may overlap
        value = special.sub(lambda found: found[0][0] + mark + found[0][1:], value)
    return value
