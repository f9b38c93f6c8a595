"""From a model's text to OpenAI's tool calls, whole or streamed. Introduced in chapter 5."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass, field
from typing import Any

from lib.serving.tool_prompt import BEGIN_CALL, END_CALL

_CALL = re.compile(
    f"{re.escape(BEGIN_CALL)}\\s*(.*?)\\s*(?:{re.escape(END_CALL)}|\\Z)\\s*", re.DOTALL
)


@dataclass
class Answer:
    """A finished text, split into its content and its calls, each {"id", "type", "function"}."""

    content: str | None
    calls: list[dict[str, Any]] = field(default_factory=list)

    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        return {**message, "tool_calls": self.calls} if self.calls else message


def parse_answer(text: str, mode: str | None, name: str | None = None) -> Answer:
    """What the text of a request with this `tool_mode` says. name: the function of mode "named".

    "named": the text is the arguments, also if it was cut off. In the other modes, text that is not a
    complete call, because the length limit cut it off, is content.
    """
    if mode is None:
        return Answer(text)
    if mode == "named":
        return Answer(None, [_call(name, text)])
    if mode == "required":
        try:
            calls = [_call(c["name"], json.dumps(c["arguments"])) for c in json.loads(text)]
        except (ValueError, TypeError, KeyError, RecursionError):
            return Answer(text)
        return Answer(None, calls)
    calls, content = [], []
    end = 0
    for found in _CALL.finditer(text):
        content.append(text[end : found.start()])
        end = found.end()
        try:
            call = json.loads(found[1])
            calls.append(_call(call["name"], json.dumps(call.get("arguments", {}))))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            content.append(found[0])
    content.append(text[end:])
    rest = "".join(content)
    return Answer((rest.strip() or None) if calls else rest, calls)


def finish_reason(reason: str | None, mode: str | None, called: bool) -> str | None:
    """As OpenAI has it: "tool_calls" where the model decided to call, "stop" where a function was named."""
    return "tool_calls" if reason == "stop" and called and mode != "named" else reason


class CallStream:
    """One choice's text as it comes, as OpenAI's deltas.

    The arguments of a named function are sent as they come. Other calls are sent at the end: until a
    call is complete, it may turn out to be text.
    """

    def __init__(self, mode: str | None, name: str | None = None) -> None:
        self._mode, self._name = mode, name
        self._held = ""  # text that is, or may become, a call
        self._begun = self.called = False

    def feed(self, text: str, last: bool) -> dict[str, Any]:
        """The delta without its role; {} if nothing can be sent yet."""
        if self._mode is None:
            return {"content": text} if text else {}
        if self._mode == "named":
            return self._arguments(text)
        self._held += text
        if last:
            answer = parse_answer(self._held, self._mode)
            self.called = bool(answer.calls)
            delta = {"content": answer.content} if answer.content else {}
            if answer.calls:
                calls = [{"index": n, **call} for n, call in enumerate(answer.calls)]
                delta = {**delta, "tool_calls": calls}
            return delta
        if self._mode == "required":
            return {}
        sure = _before_call(self._held)
        content, self._held = self._held[:sure], self._held[sure:]
        return {"content": content} if content else {}

    def _arguments(self, text: str) -> dict[str, Any]:
        if self._begun:
            call: dict[str, Any] = {"function": {"arguments": text}}
            return {"tool_calls": [{"index": 0, **call}]} if text else {}
        self._begun = self.called = True
        return {"tool_calls": [{"index": 0, **_call(self._name, text)}]}


def _before_call(text: str) -> int:
    """Characters that are certainly before a call: up to BEGIN_CALL, or to what may be its beginning."""
    at = text.find(BEGIN_CALL)
    if at >= 0:
        return at
    most = min(len(BEGIN_CALL) - 1, len(text))
    partial = next((n for n in range(most, 0, -1) if text.endswith(BEGIN_CALL[:n])), 0)
    return len(text) - partial


def _call(name: str | None, arguments: str) -> dict[str, Any]:
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
