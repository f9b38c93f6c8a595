"""POST /v1/completions and the simple POST /generate. Introduced in chapter 5."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from lib.core.outputs import Chunk, Completion
from lib.core.sampling_params import SamplingParams
from lib.serving.call import Call
from lib.serving.errors import ApiError
from lib.serving.logprobs import Row, completion_logprobs, prompt_logprobs, token_names
from lib.serving.output_collector import Update
from lib.serving.protocol import CompletionRequest, ErrorResponse, GenerateRequest, GenerateResponse
from lib.serving.service import Service, answer, checked, truncated, usage

ERRORS = {status: {"model": ErrorResponse} for status in (400, 401, 404, 413, 500, 503, 504)}
router = APIRouter(responses=ERRORS)


@router.post("/v1/completions", response_model=None)
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Continue a prompt, or several; streamed if asked."""
    service: Service = request.app.state.service
    service.async_llm.require_ready()
    service.check_model(body.model)
    params = checked(body.params)
    call = service.open(
        "cmpl", len(body.prompts) * params.n, bool(body.stream), route="completions", user=body.user
    )
    call.cache_salt = body.cache_salt
    writer = CompletionWriter(service, call, body, params.n)

    async def prepare() -> tuple[list[list[int]], SamplingParams]:
        prompts = await service.tokens.encode(body.prompts, body.add_special_tokens is not False)
        prompts = [truncated(prompt, body.truncate_prompt_tokens) for prompt in prompts]
        if body.echo:
            await writer.load_echo(prompts)
        return prompts, params

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
        self._name = token_names(service.tokens, body.return_tokens_as_token_ids)
        self._echo: list[str] = [""] * len(body.prompts)
        self._generated = body.max_tokens != 0  # else the one token is dropped
        self._offsets: dict[int, int] = {}  # by choice: where its next token begins in the text
        self._begun: set[int] = set()

    async def load_echo(self, token_ids: list[list[int]]) -> None:
        """Have the prompts' texts before the answers': as given, or decoded where they are ids or truncated."""
        if not self._tokens.has_text:
            raise ApiError(400, "echo must not be true for a model without a tokenizer", "echo")
        whole = self._body.truncate_prompt_tokens is None
        decoded = await self._tokens.decode(token_ids)
        self._echo = [
            prompt if whole and isinstance(prompt, str) else text
            for prompt, text in zip(self._body.prompts, decoded)
        ]
        self._prompts = token_ids

    def chunks(self, update: Update) -> list[dict[str, Any]]:
        body, chunks = self._body, []
        for chunk in update.chunks:
            index = update.position * self._n + chunk.index
            text, token_ids, logprobs = self._said(chunk)
            if index not in self._begun:
                self._begun.add(index)
                text = self._echo[update.position] + text
                self._offsets[index] = len(self._echo[update.position])
                if body.echoed_logprobs is not None:
                    self._offsets[index] = 0
                    token_ids = [*self._prompts[update.position], *token_ids]
                    logprobs = [*update.prompt_logprobs, *logprobs]
            if (
                not (text or chunk.finish_reason or body.return_token_ids or logprobs)
                and self._tokens.has_text
            ):
                continue  # a part of a character, or of what may become a stop string: it comes with the next ones
            choice = {
                "index": index,
                "text": text,
                "logprobs": None,
                "finish_reason": chunk.finish_reason,
            }
            if logprobs is not None:
                choice["logprobs"], self._offsets[index] = self._logprobs(
                    token_ids, logprobs, self._offsets[index]
                )
            if body.return_token_ids:
                choice["token_ids"] = self._said(chunk)[1]
            if body.return_draft_spans:
                before = len(text) - len(chunk.text)  # the echo
                moved = [(before + start, before + end) for start, end in chunk.draft_spans or []]
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
            {**self._frame, "choices": [], "usage": usage(call, self._generated)}
            if self._body.include_usage
            else None
        )

    def body(self, call: Call) -> dict[str, Any]:
        choices = []
        for position, output in sorted(call.outputs.items()):
            for completion in output.completions:
                text, token_ids, logprobs = self._said(completion)
                choice = {
                    "index": position * self._n + completion.index,
                    "text": self._echo[position] + text,
                    "logprobs": None,
                    "finish_reason": completion.finish_reason,
                }
                if self._body.return_token_ids:
                    choice |= {
                        "token_ids": token_ids,
                        "prompt_token_ids": output.prompt_token_ids,
                    }
                if self._body.prompt_logprobs is not None:
                    choice["prompt_logprobs"] = prompt_logprobs(
                        output.prompt_token_ids,
                        output.prompt_logprobs,
                        self._body.prompt_logprobs,
                        self._name,
                    )
                start = len(self._echo[position])
                if self._body.echoed_logprobs is not None:
                    token_ids = [*output.prompt_token_ids, *token_ids]
                    logprobs, start = [*output.prompt_logprobs, *logprobs], 0
                if logprobs is not None:
                    choice["logprobs"], _ = self._logprobs(token_ids, logprobs, start)
                choices.append(choice)
        return {**self._frame, "choices": choices, "usage": usage(call, self._generated)}

    def _said(self, part: Chunk | Completion) -> tuple[str, list[int], list[Row] | None]:
        """(text, token ids, log-probabilities) of what was generated."""
        if self._generated:
            return part.text, part.token_ids, part.logprobs
        return "", [], None if part.logprobs is None else []

    def _logprobs(
        self, token_ids: list[int], rows: list[Row], offset: int
    ) -> tuple[dict[str, Any], int]:
        # The prompt's may be more than were asked for here: prompt_logprobs may ask for more.
        top = self._body.logprobs
        return completion_logprobs(token_ids, rows, self._tokens, offset, top, self._name)


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
