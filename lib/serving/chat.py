"""POST /v1/chat/completions. Introduced in chapter 5."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from lib.core.outputs import Chunk, Completion
from lib.core.sampling_params import SamplingParams
from lib.serving.async_llm import Call
from lib.serving.completions import ERRORS
from lib.serving.logprobs import chat_logprobs
from lib.serving.output_collector import Update
from lib.serving.protocol import ChatRequest
from lib.serving.service import Service, answer, checked, usage

router = APIRouter(responses=ERRORS)


@router.post("/v1/chat/completions", response_model=None)
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation; streamed if asked. Without max_tokens the answer may be as long as the context allows."""
    service: Service = request.app.state.service
    service.async_llm.require_ready()
    service.check_model(body.model)
    max_tokens = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = checked(lambda: body.sampling_params(max_tokens or service.tokens.limit, logprobs))
    call = service.open("chatcmpl", params.n, bool(body.stream), route="chat", user=body.user)
    call.cache_salt = body.cache_salt

    async def prepare() -> tuple[list[list[int]], SamplingParams]:
        prompt = await service.tokens.encode_chat(body.conversation)
        rest = max(1, service.tokens.limit - len(prompt))
        return [prompt], checked(lambda: body.sampling_params(max_tokens or rest, logprobs))

    return await answer(request, service, call, prepare, ChatWriter(service, call, body))


class ChatWriter:
    def __init__(self, service: Service, call: Call, body: ChatRequest) -> None:
        self._tokens, self._body = service.tokens, body
        self._frame = {"id": call.id, "created": int(time.time()), "model": service.model_name}
        self._begun: set[int] = set()

    def chunks(self, update: Update) -> list[dict[str, Any]]:
        body, chunks = self._body, []
        for chunk in update.chunks:
            if (
                not (chunk.text or chunk.finish_reason or chunk.logprobs or body.return_token_ids)
                and self._tokens.has_text
            ):
                continue  # a part of a character, or of what may become a stop string: it comes with the next ones
            delta: dict[str, Any] = {}
            if chunk.index not in self._begun:  # the role comes with the first content, not before
                self._begun.add(chunk.index)
                delta = {"role": "assistant", "content": chunk.text}
            elif chunk.text or not chunk.finish_reason:
                delta = {"content": chunk.text}
            choice = {
                "index": chunk.index,
                "delta": delta,
                "logprobs": self._logprobs(chunk),
                "finish_reason": chunk.finish_reason,
            }
            if body.return_token_ids:
                choice["token_ids"] = chunk.token_ids
            if body.return_draft_spans:
                choice["draft_spans"] = chunk.draft_spans
            chunks.append(
                {
                    **self._frame,
                    "object": "chat.completion.chunk",
                    "choices": [choice],
                    **({"usage": None} if body.include_usage else {}),
                }
            )
        return chunks

    def usage_chunk(self, call: Call) -> dict[str, Any] | None:
        if not self._body.include_usage:
            return None
        return {
            **self._frame,
            "object": "chat.completion.chunk",
            "choices": [],
            "usage": usage(call),
        }

    def body(self, call: Call) -> dict[str, Any]:
        output, choices = call.outputs[0], []
        for completion in output.completions:
            choice = {
                "index": completion.index,
                "message": {"role": "assistant", "content": completion.text},
                "logprobs": self._logprobs(completion),
                "finish_reason": completion.finish_reason,
            }
            if self._body.return_token_ids:
                choice |= {
                    "token_ids": completion.token_ids,
                    "prompt_token_ids": output.prompt_token_ids,
                }
            choices.append(choice)
        return {
            **self._frame,
            "object": "chat.completion",
            "choices": choices,
            "usage": usage(call),
        }

    def _logprobs(self, part: Chunk | Completion) -> dict[str, Any] | None:
        if part.logprobs is None:
            return None
        return chat_logprobs(
            part.token_ids, part.logprobs, self._tokens, self._body.top_logprobs or 0
        )
