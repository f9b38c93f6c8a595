"""POST /v1/chat/completions. Introduced in chapter 5."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from lib.core.outputs import Chunk, Completion
from lib.core.sampling_params import SamplingParams
from lib.serving.call import Call
from lib.serving.chat_protocol import ChatRequest, NamedTool
from lib.serving.completions import ERRORS
from lib.serving.logprobs import chat_logprobs, prompt_logprobs, token_names
from lib.serving.output_collector import Update
from lib.serving.service import Service, answer, checked, truncated, usage
from lib.serving.tool_calls import CallStream, finish_reason, parse_answer
from lib.serving.tool_prompt import conversation, forced_output, tool_mode

router = APIRouter(responses=ERRORS)


@router.post("/v1/chat/completions", response_model=None)
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation; streamed if asked. Without max_tokens the answer may be as long as the context allows."""
    service: Service = request.app.state.service
    service.async_llm.require_ready()
    service.check_model(body.model)
    template = service.tokens.chat_template
    mode = tool_mode(body, template)
    forced = forced_output(body, mode)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None

    def params_of(max_tokens: int) -> SamplingParams:
        return checked(
            lambda: body.sampling_params(
                body.limit or max_tokens, logprobs, body.prompt_logprobs, forced
            )
        )

    params = params_of(service.tokens.limit)
    call = service.open("chatcmpl", params.n, bool(body.stream), route="chat", user=body.user)
    call.cache_salt = body.cache_salt

    async def prepare() -> tuple[list[list[int]], SamplingParams]:
        prompt = await service.tokens.encode_chat(
            conversation(body, mode, template),
            tools=[t.model_dump(exclude_none=True) for t in body.tools or []] if mode else None,
            add_generation_prompt=body.add_generation_prompt is not False
            and not body.continue_final_message,
            continue_final_message=bool(body.continue_final_message),
            template_kwargs=body.chat_template_kwargs,
        )
        prompt = truncated(prompt, body.truncate_prompt_tokens)
        return [prompt], params_of(max(1, service.tokens.limit - len(prompt)))

    return await answer(request, service, call, prepare, ChatWriter(service, call, body, mode))


class ChatWriter:
    def __init__(self, service: Service, call: Call, body: ChatRequest, mode: str | None) -> None:
        self._tokens, self._body, self._mode = service.tokens, body, mode
        self._frame = {"id": call.id, "created": int(time.time()), "model": service.model_name}
        self._name = token_names(service.tokens, body.return_tokens_as_token_ids)
        named = isinstance(body.tool_choice, NamedTool)
        self._function = body.tool_choice.function.name if named else None
        self._begun: set[int] = set()
        self._calls: dict[int, CallStream] = {}  # by choice

    def chunks(self, update: Update) -> list[dict[str, Any]]:
        body, chunks = self._body, []
        for chunk in update.chunks:
            calls = self._calls.setdefault(chunk.index, CallStream(self._mode, self._function))
            delta = calls.feed(chunk.text, last=chunk.finish_reason is not None)
            if (
                not (delta or chunk.finish_reason or chunk.logprobs or body.return_token_ids)
                and self._tokens.has_text
            ):
                continue  # a part of a character, or of what may become a stop string: it comes with the next ones
            if chunk.index not in self._begun:  # the role comes with the first content, not before
                self._begun.add(chunk.index)
                content = None if "tool_calls" in delta else ""
                delta = {"role": "assistant", "content": content, **delta}
            elif not delta and not chunk.finish_reason:
                delta = {"content": ""}
            choice = {
                "index": chunk.index,
                "delta": delta,
                "logprobs": self._logprobs(chunk),
                "finish_reason": finish_reason(chunk.finish_reason, self._mode, calls.called),
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
            said = parse_answer(completion.text, self._mode, self._function)
            choice = {
                "index": completion.index,
                "message": said.message(),
                "logprobs": self._logprobs(completion),
                "finish_reason": finish_reason(
                    completion.finish_reason, self._mode, bool(said.calls)
                ),
            }
            if self._body.return_token_ids:
                choice |= {
                    "token_ids": completion.token_ids,
                    "prompt_token_ids": output.prompt_token_ids,
                }
            choices.append(choice)
        answer = {
            **self._frame,
            "object": "chat.completion",
            "choices": choices,
            "usage": usage(call),
        }
        if output.prompt_logprobs is not None:
            answer["prompt_logprobs"] = prompt_logprobs(
                output.prompt_token_ids,
                output.prompt_logprobs,
                self._body.prompt_logprobs,
                self._name,
            )
        return answer

    def _logprobs(self, part: Chunk | Completion) -> dict[str, Any] | None:
        if part.logprobs is None:
            return None
        top = self._body.top_logprobs or 0
        return chat_logprobs(part.token_ids, part.logprobs, self._tokens, top, self._name)
