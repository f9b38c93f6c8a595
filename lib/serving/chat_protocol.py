"""The body of POST /v1/chat/completions: messages, tools and the rest. Introduced in chapter 5."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from lib.core.sampling_params import MAX_LOGPROBS
from lib.serving.fields import INT32, NEUTRAL, JsonObject, Strict, invalid
from lib.serving.protocol import GenerationRequest

_CONTENT = 'a string or a list of {type: "text", text: a string}'
# Arguments of `apply_chat_template` that are fields of the body, or that the server sets.
_OWN_ARGUMENTS = {
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "messages",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "tokenize",
    "tokenizer_kwargs",
    "tools",
    "truncation",
    "max_length",
}


class TextPart(Strict):
    type: Literal["text"]
    text: str
    cache_control: JsonObject | None = None  # without effect: prefixes are always cached


class FunctionCall(Strict):
    name: str
    arguments: str


class ToolCall(Strict):
    """A call as an answer contains it, sent back by the client."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None  # of streamed calls, which some clients keep


class Message(Strict):
    """A message of any role, also an answer as the openai package's `model_dump()` gives it."""

    model_config = ConfigDict(
        json_schema_extra={
            "description": f"{{role: system, developer, user, assistant or tool, content: {_CONTENT}}}"
        }
    )
    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="system, developer, user, assistant or tool"
    )
    content: str | list[TextPart] | None = Field(None, description=_CONTENT)
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    neutral: ClassVar = {
        "annotations": ([],),
        "audio": (),
        "function_call": (),
        "reasoning": (),
        "reasoning_content": (),
    }

    @model_validator(mode="after")
    def _fields_of_its_role(self) -> Message:
        if self.content is None and self.role != "assistant":
            raise invalid("content", f"content is required: {_CONTENT}")
        if self.tool_calls and self.role != "assistant":
            raise invalid("tool_calls", "tool_calls belong to messages of the role assistant")
        if self.tool_call_id is not None and self.role != "tool":
            raise invalid("tool_call_id", "tool_call_id belongs to messages of the role tool")
        return self

    def for_template(self) -> dict[str, Any]:
        """As chat templates take it: one text, arguments as objects, and the role "system" for "developer"."""
        content = self.content
        if isinstance(content, list):
            content = "\n".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": content or self.refusal or ""}
        for name in ("name", "tool_call_id"):
            if (value := getattr(self, name)) is not None:
                message[name] = value
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": call.function.name,
                        "arguments": _parsed(call.function.arguments),
                    },
                }
                for call in self.tool_calls
            ]
        return message


class Function(Strict):
    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    parameters: JsonObject | None = None  # a JSON schema
    strict: bool | None = None  # without effect: forced calls always follow the schema


class Tool(Strict):
    type: Literal["function"]
    function: Function


class FunctionName(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"] = "function"
    function: FunctionName


class ChatRequest(GenerationRequest):
    messages: list[Message] = Field(
        min_length=1,
        description="a list of {role: system, developer, user, assistant or tool, content: a string or "
        "text parts}, and not empty",
    )
    max_tokens: int | None = Field(None, ge=1, le=INT32)
    max_completion_tokens: int | None = Field(
        None, ge=1, le=INT32
    )  # OpenAI's newer name of max_tokens
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        None,
        description='none, auto, required or {type: "function", function: {name: one of the tools}}',
    )
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: JsonObject | None = None
    neutral: ClassVar = {
        **NEUTRAL,
        "add_special_tokens": (False,),
        "audio": (),
        "chat_template": (),
        "documents": ([],),
        "echo": (False,),
        "function_call": ("none",),
        "functions": ([],),
        "include_reasoning": (True,),
        "mm_processor_kwargs": ({},),
        "modalities": (["text"],),
        "prediction": (),
        "reasoning_effort": ("none",),
        "verbosity": (),
        "web_search_options": (),
    }

    @model_validator(mode="after")
    def _names_agree(self) -> ChatRequest:
        if (
            None not in (self.max_tokens, self.max_completion_tokens)
            and self.max_tokens != self.max_completion_tokens
        ):
            raise invalid(
                "max_completion_tokens",
                "max_completion_tokens is another name of max_tokens, and they differ",
            )
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs", "top_logprobs needs logprobs: true")
        if self.continue_final_message and self.add_generation_prompt:
            raise invalid(
                "continue_final_message",
                "continue_final_message does not go together with add_generation_prompt",
            )
        for name in self.chat_template_kwargs or {}:
            if name in _OWN_ARGUMENTS:
                raise invalid(
                    "chat_template_kwargs", f"chat_template_kwargs must not contain {name!r}"
                )
        self._check_tools()
        return self

    def _check_tools(self) -> None:
        names = [tool.function.name for tool in self.tools or []]
        if len(set(names)) < len(names):
            raise invalid("tools", f"tools must have different names, got {names!r}"[:300])
        if isinstance(self.tool_choice, NamedTool):
            if (name := self.tool_choice.function.name) not in names:
                raise invalid(
                    "tool_choice", f"tool_choice must name one of the tools, got {name!r}"[:300]
                )
        elif self.tool_choice not in (None, "none") and not names:
            raise invalid("tool_choice", f"tool_choice {self.tool_choice!r} needs tools")
        if names and self.tool_choice not in (None, "none", "auto") and self.structured is not None:
            raise invalid(
                "tool_choice",
                "tool_choice forces a call: it does not go together with response_format "
                "or structured_outputs",
            )

    @property
    def limit(self) -> int | None:
        """max_tokens by either name."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens


def _parsed(arguments: str) -> Any:
    """The object that the text stands for; the text itself if it is not JSON."""
    try:
        return json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
