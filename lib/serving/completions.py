"""POST /v1/completions and the simple POST /generate. Introduced in chapter 5."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from lib.core.sampling_params import SamplingParams
from lib.serving.async_llm import Call
from lib.serving.errors import ApiError
from lib.serving.logprobs import completion_logprobs
from lib.serving.output_collector import Update
from lib.serving.protocol import CompletionRequest, ErrorResponse, GenerateRequest, GenerateResponse
from lib.serving.service import Service, answer, checked, usage

ERRORS = {status: {"model": ErrorResponse} for status in (400, 401, 404, 413, 500, 503, 504)}
router = APIRouter(responses=ERRORS)


@router.post("/v1/completions", response_model=None)
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Continue a prompt, or several; streamed if asked."""
    service: Service = request.app.state.service
    service.async_llm.require_ready()
    service.check_model(body.model)
    params = checked(lambda: body.sampling_params(body.max_tokens, body.logprobs))
    prompts = body.prompts
    call = service.open(
        "cmpl", len(prompts) * params.n, bool(body.stream), route="completions", user=body.user
    )
    call.cache_salt = body.cache_salt
    writer = CompletionWriter(service, call, body, params.n)

    async def prepare() -> tuple[list[list[int]], SamplingParams]:
        if body.echo:
            await writer.load_echo(prompts)
        return await service.tokens.encode(prompts), params

    return await answer(request, service, call, prepare, writer)


class CompletionWriter:
    def __init__(self, service: Service, call: Call, body: CompletionRequest, n: int) -> None:
        self._tokens, self._body, self._n = service.tokens, body, n
        self._frame = {
            "id": call.id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.model_name,
        }
        self._echo: list[str] = [""] * len(body.prompts)
        self._offsets: dict[int, int] = {}  # by choice: where its next token begins in the text
        self._begun: set[int] = set()

    async def load_echo(self, prompts: list[str | list[int]]) -> None:
        if not self._tokens.has_text:
            raise ApiError(400, "echo must not be true for a model without a tokenizer", "echo")
        ids = iter(await self._tokens.decode([p for p in prompts if not isinstance(p, str)]))
        self._echo = [p if isinstance(p, str) else next(ids) for p in prompts]

    def chunks(self, update: Update) -> list[dict[str, Any]]:
        body, chunks = self._body, []
        for chunk in update.chunks:
            index, echo = update.position * self._n + chunk.index, ""
            if index not in self._begun:
                self._begun.add(index)
                echo = self._echo[update.position]
            text = echo + chunk.text
            if (
                not (text or chunk.finish_reason or body.return_token_ids or chunk.logprobs)
                and self._tokens.has_text
            ):
                continue  # a part of a character, or of what may become a stop string: it comes with the next ones
            choice = {
                "index": index,
                "text": text,
                "logprobs": None,
                "finish_reason": chunk.finish_reason,
            }
            if chunk.logprobs is not None:
                choice["logprobs"], self._offsets[index] = completion_logprobs(
                    chunk.token_ids, chunk.logprobs, self._tokens, self._offsets.get(index, 0)
                )
            if body.return_token_ids:
                choice["token_ids"] = chunk.token_ids
            if body.return_draft_spans:
                moved = [
                    (len(echo) + start, len(echo) + end) for start, end in chunk.draft_spans or []
                ]
                choice["draft_spans"] = moved or None
            chunks.append(
                {
                    **self._frame,
                    "choices": [choice],
                    **({"usage": None} if body.include_usage else {}),
                }
            )
        return chunks

    def usage_chunk(self, call: Call) -> dict[str, Any] | None:
        return (
            {**self._frame, "choices": [], "usage": usage(call)}
            if self._body.include_usage
            else None
        )

    def body(self, call: Call) -> dict[str, Any]:
        choices = []
        for position, output in sorted(call.outputs.items()):
            for completion in output.completions:
                choice = {
                    "index": position * self._n + completion.index,
                    "text": self._echo[position] + completion.text,
                    "logprobs": None,
                    "finish_reason": completion.finish_reason,
                }
                if completion.logprobs is not None:
                    choice["logprobs"], _ = completion_logprobs(
                        completion.token_ids, completion.logprobs, self._tokens, 0
                    )
                if self._body.return_token_ids:
                    choice |= {
                        "token_ids": completion.token_ids,
                        "prompt_token_ids": output.prompt_token_ids,
                    }
                choices.append(choice)
        return {**self._frame, "choices": choices, "usage": usage(call)}


@router.post("/generate", response_model=GenerateResponse)
async def generate(body: GenerateRequest, request: Request) -> Response:
    """The shortest way to some text."""
    service: Service = request.app.state.service
    service.async_llm.require_ready()
    params = checked(
        lambda: SamplingParams(max_tokens=body.max_tokens, temperature=body.temperature)
    )
    call = service.open("gen", 1, False, route="generate")

    async def prepare() -> tuple[list[list[int]], SamplingParams]:
        return await service.tokens.encode([body.prompt]), params

    return await answer(request, service, call, prepare, GenerateWriter())


class GenerateWriter:
    def chunks(self, update: Update) -> list[dict[str, Any]]:
        raise NotImplementedError("/generate does not stream")

    usage_chunk = chunks

    def body(self, call: Call) -> dict[str, Any]:
        output = call.outputs[0]
        return {
            "request_id": call.id,
            "generated_text": output.text,
            "token_count": len(output.token_ids),
        }
