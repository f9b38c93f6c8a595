"""What the routes share: the engine, the tokenizers, the options, and the course of an answer. Introduced in chapter 5."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lib.core.sampling_params import SamplingParams
from lib.engine.llm import LLM
from lib.serving.async_llm import AsyncLLM, Call, Update
from lib.serving.errors import ApiError, refuse
from lib.serving.feed import Feed
from lib.serving.observer import Observer
from lib.serving.prometheus import PrometheusMetrics
from lib.serving.server_options import ServerOptions
from lib.serving.sse import DONE, ClientGone, EventStream, event, unless_gone
from lib.serving.tokens import TokenizerPool
from lib.serving.warmup import warm_up

Prepare = Callable[
    [], Awaitable[tuple[list[list[int]], SamplingParams]]
]  # the prompts' token ids, and the parameters


class Writer(Protocol):
    """One route's format."""

    def chunks(self, update: Update) -> list[dict[str, Any]]: ...

    def usage_chunk(self, call: Call) -> dict[str, Any] | None: ...

    def body(self, call: Call) -> dict[str, Any]: ...


class Service:
    """`make_llm` is called in the engine's thread, some time after `engine.start()`."""

    def __init__(self, options: ServerOptions, make_llm: Callable[[], LLM]) -> None:
        self.options, self.model_name = options, options.served_model_name
        self.tokens: TokenizerPool | None = None  # there as soon as the engine is ready
        self.feed = Feed()
        self.metrics = PrometheusMetrics(self.model_name, lambda: self.engine.stats)

        def make() -> LLM:
            llm = make_llm()
            warm_up(llm)
            self.tokens = TokenizerPool(llm)
            return llm

        self.engine = AsyncLLM(
            make, options.max_concurrent_requests, Observer(self.metrics, self.feed)
        )
        self.feed.watch = self.engine.watch

    def check_model(self, name: str | None) -> None:
        if name is not None and name != self.model_name:
            raise ApiError(
                404,
                f"model {name[:80]!r} does not exist here, {self.model_name!r} does",
                "model",
                "model_not_found",
            )

    def open(self, prefix: str, num_sequences: int, stream: bool, **log_fields: Any) -> Call:
        fields = {name: value for name, value in log_fields.items() if value is not None}
        return self.engine.open(
            f"{prefix}-{uuid.uuid4().hex[:24]}",
            num_sequences,
            self.options.request_timeout,
            stream,
            **fields,
        )


def checked(make: Callable[[], SamplingParams]) -> SamplingParams:
    """`make()`, its ValueError as a 400. SamplingParams' messages begin with the field's name."""
    try:
        return make()
    except ValueError as error:
        raise ApiError(400, str(error), str(error).split()[0]) from None


async def answer(request: Request, call: Call, prepare: Prepare, writer: Writer) -> Response:
    """Take a call from its prompt to its answer. However it ends, the call is closed and its room given back.

    The head of a streamed answer waits for the first token, so that whatever fails until then has a status of its own.
    """
    try:
        first = await unless_gone(request, _until_answerable(call, prepare))
    except BaseException as error:
        call.close()
        if isinstance(error, ClientGone):
            return Response(status_code=499)  # nobody reads it
        raise
    if call.stream:
        return EventStream(_events(request, call, first, writer), close=call.close)
    call.close()
    return JSONResponse(writer.body(call))


async def _until_answerable(call: Call, prepare: Prepare) -> list[Update]:
    """Submit; wait for the first news of a stream, or else for everything."""
    prompts, params = await call.in_time(prepare())
    call.submit(prompts, params)
    updates = await call.next()
    while not call.stream and not call.finished:
        await call.next()
    return updates


async def _events(
    request: Request, call: Call, updates: list[Update], writer: Writer
) -> AsyncIterator[bytes]:
    try:
        while True:
            if data := b"".join(
                event(chunk) for update in updates for chunk in writer.chunks(update)
            ):
                yield data
            if call.finished:
                break
            updates = await call.next()
        if (usage := writer.usage_chunk(call)) is not None:
            yield event(usage)
    except ApiError as error:  # too late for a status
        refuse(request.url.path, error)
        yield event(error.body())
    yield DONE


def usage(call: Call) -> dict[str, int]:
    """Tokens of the call so far: each prompt once, whatever n is."""
    prompt = sum(len(output.prompt_token_ids) for output in call.outputs.values())
    completion = sum(
        len(c.token_ids) for output in call.outputs.values() for c in output.completions
    )
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
