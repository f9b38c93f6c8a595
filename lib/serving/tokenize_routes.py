"""POST /tokenize and /detokenize, as vLLM has them. Introduced in chapter 5."""

from __future__ import annotations

from typing import Any, ClassVar

from fastapi import APIRouter, Request
from pydantic import Field, model_validator

from lib.serving.chat_protocol import Message
from lib.serving.completions import ERRORS
from lib.serving.errors import ApiError
from lib.serving.fields import Strict, Text, invalid
from lib.serving.service import Service
from lib.serving.tool_prompt import template_messages

router = APIRouter(responses=ERRORS)


class TokenizeRequest(Strict):
    """A prompt, or a conversation."""

    model: str | None = None
    prompt: Text | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    add_special_tokens: bool | None = None  # default: true for a prompt
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None
    neutral: ClassVar = {"tools": ([],), "chat_template": (), "chat_template_kwargs": ({},)}

    @model_validator(mode="after")
    def _one_of_two(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise invalid("prompt", "prompt or messages must be given, and not both")
        if self.continue_final_message and self.add_generation_prompt:
            raise invalid(
                "continue_final_message",
                "continue_final_message does not go together with add_generation_prompt",
            )
        if self.messages is not None and self.add_special_tokens:
            raise invalid("add_special_tokens", "add_special_tokens must not be true with messages")
        return self


class DetokenizeRequest(Strict):
    model: str | None = None
    tokens: list[int]


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> dict[str, Any]:
    """Token ids of a prompt or a conversation, as the engine would get them."""
    service: Service = request.app.state.service
    service.check_model(body.model)
    if body.messages is not None:
        token_ids = await service.tokens.encode_chat(
            template_messages(body.messages, service.tokens.chat_template),
            add_generation_prompt=body.add_generation_prompt is not False
            and not body.continue_final_message,
            continue_final_message=bool(body.continue_final_message),
        )
    else:
        (token_ids,) = await service.tokens.encode(
            [body.prompt], body.add_special_tokens is not False
        )
    texts = [service.tokens.token_text(i) for i in token_ids] if body.return_token_strs else None
    return {
        "count": len(token_ids),
        "max_model_len": service.tokens.limit,
        "tokens": token_ids,
        "token_strs": texts,
    }


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, request: Request) -> dict[str, Any]:
    """The text that token ids stand for, special tokens included."""
    service: Service = request.app.state.service
    service.check_model(body.model)
    if not service.tokens.has_text:
        raise ApiError(400, "tokens cannot be decoded for a model without a tokenizer", "tokens")
    size = service.llm.config.vocab_size
    if (wrong := next((i for i in body.tokens if not 0 <= i < size), None)) is not None:
        raise ApiError(400, f"tokens must be >= 0 and < {size}, got {wrong}", "tokens")
    (text,) = await service.tokens.decode([body.tokens], skip_special_tokens=False)
    return {"prompt": text}
