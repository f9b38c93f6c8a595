"""What the routes share: the engine, the tokenizers, the options, and how a call becomes an answer.

From POST to the streamed token, one line per hop:

    completions.py, chat.py   create_*           the body is validated; `Service.open` reserves room or answers 503
    service.py                answer             tokenises in TokenizerPool, then reads `AsyncLLM.generate`
    async_llm.py              AsyncLLM.generate  sends `Add` to the thread, then reads the call's OutputCollector
    engine_thread.py          EngineThread       adds the requests, steps, posts one `Turn` per step to the event loop
    async_llm.py              AsyncLLM._on_turn  puts each request's news into its call's OutputCollector
    service.py                _events            has the route's Writer put each update into OpenAI's JSON
    sse.py                    EventStream        sends each event; closes the call when the client hangs up

Introduced in chapter 5.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lib.core.sampling_params import SamplingParams
from lib.engine.llm import LLM
from lib.serving.async_llm import AsyncLLM
from lib.serving.call import Call
from lib.serving.errors import ApiError, invalid_request, refuse
from lib.serving.observer import Observer
from lib.serving.output_collector import Update
from lib.serving.page_feed import Feed
from lib.serving.prometheus import PrometheusMetrics
from lib.serving.schema_compiler import SchemaCompiler
from lib.serving.server_options import ServerOptions
from lib.serving.sse import DONE, ClientGone, EventStream, event, unless_gone
from lib.serving.tokenizer_pool import TokenizerPool
from lib.serving.warmup import warm_up

# Tokenises: returns the prompts' token ids, and the sampling parameters.
Prepare = Callable[[], Awaitable[tuple[list[list[int]], SamplingParams]]]
Updates = AsyncIterator[list[Update]]


class Writer(Protocol):
    """One route's format."""

    def chunks(self, update: Update) -> list[dict[str, Any]]: ...

    def usage_chunk(self, call: Call) -> dict[str, Any] | None: ...

    def body(self, call: Call) -> dict[str, Any]: ...


class Service:
    """`make_llm` is called in the engine's thread, some time after `async_llm.start()`."""

    def __init__(self, options: ServerOptions, make_llm: Callable[[], LLM]) -> None:
        self.options, self.model_name = options, options.served_model_name
        self.feed = Feed()
        self.metrics = PrometheusMetrics(self.model_name, lambda: self.async_llm.stats)
        self._tokens: TokenizerPool | None = None
        self.compiler = SchemaCompiler(lambda: self.llm.output_rules)

        def make() -> LLM:
            llm = make_llm()
            warm_up(llm)
            self.metrics.start(llm.stats())
            self._tokens = TokenizerPool(llm)
            return llm

        self.async_llm = AsyncLLM(
            make, options.max_concurrent_requests, Observer(self.metrics, self.feed)
        )
        self.feed.watch = self.async_llm.watch

    @property
    def llm(self) -> LLM:
        """For what never changes. Raises ApiError 503 while the engine loads."""
        if self.async_llm.llm is None:
            state = self.async_llm.state
            raise ApiError(503, f"the engine is {state}", code=state, retry_after=5)
        return self.async_llm.llm

    @property
    def tokens(self) -> TokenizerPool:
        """Raises ApiError 503 while the engine loads."""
        assert self.llm is not None and self._tokens is not None  # made before the LLM is announced
        return self._tokens

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
        return self.async_llm.open(
            f"{prefix}-{uuid.uuid4().hex[:24]}",
            num_sequences,
            self.options.request_timeout or None,
            stream,
            **fields,
        )

    def close(self) -> None:
        """End the page's streams and the tokenizers' threads."""
        self.feed.close()
        self.compiler.close()
        if self._tokens is not None:
            self._tokens.close()


def truncated(token_ids: list[int], most: int | None) -> list[int]:
    """The last `most` tokens; all of them for None."""
    return token_ids if most is None else token_ids[-most:]


def checked(make: Callable[[], SamplingParams]) -> SamplingParams:
    """`make()`, its ValueError as a 400."""
    try:
        return make()
    except ValueError as error:
        raise invalid_request(error) from None


async def answer(
    request: Request, service: Service, call: Call, prepare: Prepare, writer: Writer
) -> Response:
    """Take a call from its prompt to its answer. However it ends, the call is closed and its room given back.

    The head of a streamed answer waits for the first token, so that whatever fails until then has a status of its own.
    """
    close = lambda: service.async_llm.close(call)  # noqa: E731
    try:
        first, updates = await unless_gone(request, _begin(service, call, prepare))
    except BaseException as error:
        close()
        if isinstance(error, ClientGone):
            return Response(status_code=499)  # the client has gone
        raise
    if call.stream:
        return EventStream(_events(request, call, first, updates, writer), close)
    close()
    return JSONResponse(writer.body(call))


async def _begin(service: Service, call: Call, prepare: Prepare) -> tuple[list[Update], Updates]:
    """Tokenise and generate: up to the first updates of a stream, or else to the end."""
    prompts, params = await call.in_time(prepare())
    await call.in_time(service.compiler.prepare(params))
    updates = service.async_llm.generate(prompts, params, call)
    first = await anext(updates)
    if not call.stream:
        async for _ in updates:
            pass
    return first, updates


async def _events(
    request: Request, call: Call, first: list[Update], rest: Updates, writer: Writer
) -> AsyncIterator[bytes]:
    try:
        yield _encode(writer, first)
        async for updates in rest:
            yield _encode(writer, updates)
        if (usage := writer.usage_chunk(call)) is not None:
            yield event(usage)
    except ApiError as error:  # too late for a status
        refuse(request.url.path, error)
        yield event(error.body())
    yield DONE


def _encode(writer: Writer, updates: list[Update]) -> bytes:
    return b"".join(event(chunk) for update in updates for chunk in writer.chunks(update))


def usage(call: Call, generated: bool = True) -> dict[str, Any]:
    """Tokens of the call so far: each prompt once, whatever n is. generated: whether the output counts."""
    cached = sum(output.num_cached_tokens or 0 for output in call.outputs.values())
    prompt = sum(len(output.prompt_token_ids) for output in call.outputs.values())
    completion = 0
    if generated:
        completion = sum(
            len(c.token_ids) for output in call.outputs.values() for c in output.completions
        )
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
