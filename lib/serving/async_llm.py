"""The event loop's side of the engine: admission, one queue a call, aborts. Introduced in chapter 5.

Everything here runs on the loop; `EngineThread` is the other side. A turn of the engine costs the loop one wake-up,
however many requests it served.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lib.core.outputs import Chunk, RequestOutput
from lib.core.sampling_params import SamplingParams
from lib.engine.llm import LLM
from lib.serving.engine_thread import Abort, Add, EngineThread, Turn
from lib.serving.errors import ApiError
from lib.serving.logs import log
from lib.serving.observer import InFlightRequest, Observer

_T = TypeVar("_T")


@dataclass
class Update:
    """News of one prompt of a call. `output` is set with the last one."""

    position: int
    chunks: list[Chunk]
    output: RequestOutput | None


class AsyncLLM:
    """Bounded access to one LLM, which `make_llm` builds in the engine's own thread.

    `max_concurrent`: sequences (prompts x n) that may run or wait; a call beyond that is refused at once, because a
    queue that grows without bound only turns overload into timeouts. `state`: "loading", "ready", "draining" or "dead".
    """

    def __init__(
        self, make_llm: Callable[[], LLM], max_concurrent: int, observer: Observer
    ) -> None:
        self.max_concurrent, self.observer = max_concurrent, observer
        self.state, self.in_flight = "loading", 0
        self.llm: LLM | None = None  # for what never changes: config, tokenizer, limits
        self.stats: dict[str, Any] = {}  # as of the last turn
        self.ended: asyncio.Future[BaseException] = None  # the error that ended the thread
        self.ready = asyncio.Event()
        self._calls: dict[str, tuple[Call, InFlightRequest]] = {}  # by the engine's request id
        self._idle = asyncio.Event()
        self._idle.set()
        self._thread = EngineThread(
            make_llm,
            self._post(self._on_ready),
            self._post(self._on_turn),
            self._post(self._on_death),
        )
        self.watch, self.stop = self._thread.watch, self._thread.stop

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended = self._loop.create_future()
        self._thread.start()

    def open(
        self,
        call_id: str,
        num_sequences: int,
        timeout: float | None,
        stream: bool,
        **log_fields: Any,
    ) -> Call:
        """Reserve room for a call. Raises ApiError 503 if there is none or the engine is not ready."""
        if self.state != "ready":
            raise ApiError(503, f"the engine is {self.state}", code=self.state, retry_after=5)
        if num_sequences > self.max_concurrent:
            raise ApiError(
                400,
                f"prompts x n must be <= {self.max_concurrent}, the sequences that this server takes "
                f"at a time, got {num_sequences}",
                "n",
            )
        if self.in_flight + num_sequences > self.max_concurrent:
            raise ApiError(
                503,
                f"{self.in_flight} sequences are running or waiting, and the limit is "
                f"{self.max_concurrent}: try again later",
                code="overloaded",
                retry_after=1,
            )
        self.in_flight += num_sequences
        self._idle.clear()
        return Call(self, call_id, num_sequences, timeout, stream, log_fields)

    async def drain(self, timeout: float) -> bool:
        """Refuse new calls and wait for the others. After `timeout` seconds they are ended with an error: False."""
        self.state = "draining" if self.state != "dead" else "dead"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout)
            return True
        self._fail_all(lambda: ApiError(503, "the server is shutting down", code="draining"))
        return False

    # What a Call needs.

    def submit(self, call: Call, requests: Sequence[tuple[str, list[int], SamplingParams]]) -> None:
        for position, (request_id, token_ids, params) in enumerate(requests):
            self._calls[request_id] = (
                call,
                InFlightRequest(
                    request_id, position, params, len(token_ids), call.arrival, call.fields
                ),
            )
        self._thread.send(Add(requests))

    def abort(self, request_ids: Sequence[str]) -> None:
        unfinished = [i for i in request_ids if i in self._calls]
        if unfinished:
            self._thread.send(Abort(unfinished))

    def release(self, num_sequences: int) -> None:
        self.in_flight -= num_sequences
        if self.in_flight == 0:
            self._idle.set()

    # What the thread reports.

    def _post(self, function: Callable[[Any], None]) -> Callable[[Any], None]:
        def post(value: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
                self._loop.call_soon_threadsafe(function, value)

        return post

    def _on_ready(self, llm: LLM) -> None:
        self.llm, self.stats = (
            llm,
            llm.stats(),
        )  # the thread waits for work, which only this loop can send
        if self.state == "loading":
            self.state = "ready"
        self.ready.set()

    def _on_turn(self, turn: Turn) -> None:
        self.stats = turn.stats
        for output in turn.outputs:
            call, flight = self._calls.get(output.request_id, (None, None))
            if call is None:
                continue
            self.observer.progressed(flight, output, turn.time)
            if output.finished:
                self._forget(output.request_id)
            if call.stream or output.finished:
                call.put(
                    Update(flight.position, output.chunks, output if output.finished else None)
                )
        for request_id, error in turn.errors:
            if request_id in self._calls:
                call, flight = self._calls[request_id]
                self._forget(request_id)
                if isinstance(error, ValueError) and not flight.started:  # the engine refused it
                    call.put(_refusal(error))
                else:
                    self.observer.failed(flight)
                    call.put(
                        ApiError(
                            500,
                            "the engine failed while it worked on this request; try again",
                            code="engine_error",
                        )
                    )
        self.observer.turned(turn)

    def _on_death(self, error: BaseException) -> None:
        self.state = "dead"
        log(
            "engine died",
            logging.CRITICAL,
            reason=repr(error)[:500],
            exc_info=None if isinstance(error, (ValueError, OSError)) else error,
        )
        self._fail_all(lambda: ApiError(503, "the engine has died, the server ends", code="dead"))
        if not self.ended.done():
            self.ended.set_result(error)

    def _forget(self, request_id: str) -> None:
        _, flight = self._calls.pop(request_id)
        self.release(flight.params.n)

    def _fail_all(self, make_error: Callable[[], ApiError]) -> None:
        for request_id, (call, flight) in list(self._calls.items()):
            self._thread.send(Abort([request_id]))
            self._forget(request_id)
            self.observer.failed(flight)
            call.put(make_error())


class Call:
    """One HTTP request's stay in the engine: open, submit, next until finished, close (always)."""

    def __init__(
        self,
        engine: AsyncLLM,
        call_id: str,
        num_sequences: int,
        timeout: float | None,
        stream: bool,
        fields: dict[str, Any],
    ) -> None:
        self.id, self.stream, self.fields = call_id, stream, fields
        self.arrival = time.monotonic()
        self.request_ids: list[str] = []
        self.outputs: dict[int, RequestOutput] = {}  # by position, the finished ones
        self._engine, self._reserved, self._timeout = engine, num_sequences, timeout
        self._deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        self._queue: asyncio.Queue[Update | ApiError] = asyncio.Queue()

    def submit(self, prompts: Sequence[list[int]], params: SamplingParams) -> None:
        ids = (
            [self.id]
            if len(prompts) == 1
            else [f"{self.id}-{position}" for position in range(len(prompts))]
        )
        self.request_ids, self._reserved = ids, 0
        self._engine.submit(
            self, [(i, token_ids, params) for i, token_ids in zip(ids, prompts, strict=True)]
        )

    def put(self, item: Update | ApiError) -> None:
        self._queue.put_nowait(item)

    @property
    def finished(self) -> bool:
        return len(self.outputs) == len(self.request_ids) > 0

    async def next(self) -> list[Update]:
        """What came since the last call, at least one update. Raises ApiError; 504 when the time is up."""
        items = [await self.in_time(self._queue.get())]
        while not self._queue.empty():
            items.append(self._queue.get_nowait())
        for item in items:
            if isinstance(item, ApiError):
                raise item
            if item.output is not None:
                self.outputs[item.position] = item.output
        return items

    async def in_time(self, work: Awaitable[_T]) -> _T:
        """Wait for a part of the call's work. ApiError 504, and the call is closed, once its time is up."""
        try:
            async with asyncio.timeout_at(self._deadline):
                return await work
        except TimeoutError:
            self.close()
            raise ApiError(
                504,
                f"the request took longer than {self._timeout:g} s, the limit of this server",
                code="timeout",
            ) from None

    def close(self) -> None:
        """Give everything back. What still runs is aborted, and counts until the engine has let it go."""
        self._engine.release(self._reserved)
        self._reserved = 0
        self._engine.abort(self.request_ids)


def _refusal(error: ValueError) -> ApiError:
    message = str(error)
    code = "context_length_exceeded" if message.startswith("prompt (") else None
    return ApiError(400, message, message.split()[0], code)
