"""Tools in the prompt: their description for the model, and the form that forces a call.

A chat template that knows tools describes them. With any other template a system message does, and only
forced calls are possible: those are structured output. Introduced in chapter 5.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lib.serving.chat_protocol import ChatRequest, Message, NamedTool, Tool
from lib.serving.errors import ApiError

# How the models whose calls are understood here mark them (Hermes, Qwen, SmolLM3): JSON between two tags.
BEGIN_CALL, END_CALL = "<tool_call>", "</tool_call>"


def tool_mode(body: ChatRequest, chat_template: str) -> str | None:
    """None: no calls. "named", "required": forced. "auto": the model decides. Raises ApiError 400."""
    if not body.tools or body.tool_choice == "none":
        return None
    if isinstance(body.tool_choice, NamedTool):
        return "named"
    if body.tool_choice == "required":
        return "required"
    if "tools" not in chat_template or BEGIN_CALL not in chat_template:
        raise ApiError(
            400,
            "tool_choice 'auto' needs a model whose chat template has tools and marks calls with "
            f"{BEGIN_CALL}; this model takes 'none', 'required' and named functions",
            "tool_choice",
        )
    return "auto"


def forced_output(body: ChatRequest, mode: str | None) -> dict[str, Any] | None:
    """What the text must be, as SamplingParams.structured_outputs. Raises ApiError 400.

    "named": the arguments of the function. "required": a list of {"name", "arguments"}.
    """
    tools = body.tools or []
    if mode == "named":
        name = body.tool_choice.function.name
        function = next(t.function for t in tools if t.function.name == name)
        return {"json": _parameters(function.parameters)}
    if mode != "required":
        return None
    definitions: dict[str, Any] = {}
    calls = []
    for tool in tools:
        parameters = dict(_parameters(tool.function.parameters))
        # References begin at the root of the whole schema.
        for kind in ("$defs", "definitions"):
            for name, schema in parameters.pop(kind, {}).items():
                if definitions.setdefault(kind, {}).setdefault(name, schema) != schema:
                    raise ApiError(
                        400, f"tools must not define {kind}.{name} in different ways", "tools"
                    )
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.function.name}, "arguments": parameters},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    array: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
    if body.parallel_tool_calls is False:
        array["maxItems"] = 1
    return {"json": {**definitions, **array}}


def conversation(body: ChatRequest, mode: str | None, chat_template: str) -> list[dict[str, Any]]:
    """The messages for the template; with functions and calls written out where it does not know them."""
    messages = template_messages(body.messages, chat_template)
    if mode is None or "tools" in chat_template:
        return messages
    described = _description(body.tools or [], mode, body.tool_choice)
    if messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{described}\n\n{messages[0]['content']}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": described}, *messages]


def template_messages(messages: Sequence[Message], chat_template: str) -> list[dict[str, Any]]:
    """The messages for the template, with earlier calls written out where it does not know them."""
    written = [message.for_template() for message in messages]
    if "tool_calls" in chat_template:
        return written
    return [_with_calls_as_text(message) for message in written]


def _description(tools: list[Tool], mode: str, choice: Any) -> str:
    functions = "\n".join(
        json.dumps(tool.function.model_dump(exclude_none=True, exclude={"strict"}))
        for tool in tools
    )
    form = 'a JSON list of calls such as [{"name": ..., "arguments": {...}}]'
    if mode == "named":
        form = f"the arguments of the function {choice.function.name} as a JSON object"
    return f"You can call these functions:\n{functions}\nAnswer with {form}."


def _with_calls_as_text(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.pop("tool_calls", None)
    if not calls:
        return message
    written = [f"{BEGIN_CALL}\n{json.dumps(_name_and_arguments(c))}\n{END_CALL}" for c in calls]
    return {**message, "content": "\n".join(filter(None, [message["content"], *written]))}


def _name_and_arguments(call: dict[str, Any]) -> dict[str, Any]:
    return {key: call["function"][key] for key in ("name", "arguments")}


def _parameters(parameters: dict[str, Any] | None) -> dict[str, Any]:
    return {"type": "object"} if not parameters else parameters
