"""The event loop's side of the engine: admission, `generate`, aborts. Introduced in chapter 5.

Everything here runs on the loop; `EngineThread` is the other side. A turn of the engine costs the loop one wake-up,
however many requests it served.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from lib.core.outputs import RequestOutput
from lib.core.sampling_params import SamplingParams
from lib.engine.llm import LLM
from lib.serving.call import Call
from lib.serving.engine_thread import Abort, Add, EngineThread, Turn
from lib.serving.errors import ApiError, engine_error, invalid_request
from lib.serving.logs import log
from lib.serving.observer import InFlightRequest, Observer
from lib.serving.output_collector import Update

# A step that takes longer than this hangs: the slowest one, a full batch of a large model on a CPU, takes seconds, and
# what is compiled on first use was compiled by the warm-up.
HUNG_STEP_SECONDS = 60.0


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
        self.hung_after = HUNG_STEP_SECONDS
        self.llm: LLM | None = None  # for what never changes: config, tokenizer, limits
        self.stats: dict[str, Any] = {}  # as of the last turn
        self.ready, self.dead = asyncio.Event(), asyncio.Event()
        self._requests: dict[str, tuple[Call, InFlightRequest]] = {}  # by the engine's request id
        self._refusal: ApiError | None = (
            None  # set when no call may go on: the engine's or drain's end
        )
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
        self._thread.start()

    @property
    def hung(self) -> bool:
        """Whether the engine has been in one step for more than `hung_after` seconds."""
        began = self._thread.turn_began
        return began is not None and time.monotonic() - began > self.hung_after

    def require_ready(self) -> None:
        """Raises ApiError 503 unless new calls are taken."""
        if self.state != "ready":
            raise ApiError(503, f"the engine is {self.state}", code=self.state, retry_after=5)

    def open(
        self,
        call_id: str,
        num_sequences: int,
        timeout: float | None,
        stream: bool,
        **log_fields: Any,
    ) -> Call:
        """Reserve room for a call.

        Raises ApiError 503 if there is none or the engine is not ready.
        """
        self.require_ready()
        if num_sequences > self.max_concurrent:
            raise ApiError(
                400,
                f"prompts x n must be <= {self.max_concurrent}, the sequences that "
                f"this server takes at a time, got {num_sequences}",
                "n",
            )
        if self.in_flight + num_sequences > self.max_concurrent:
            raise ApiError(
                503,
                f"{self.in_flight} sequences are running or waiting, and the limit "
                f"is {self.max_concurrent}: try again later",
                code="overloaded",
                retry_after=1,
            )
        self.in_flight += num_sequences
        self._idle.clear()
        deadline = None if timeout is None else self._loop.time() + timeout
        return Call(call_id, stream, num_sequences, timeout, deadline, log_fields)

    async def generate(
        self, prompts: Sequence[list[int]], params: SamplingParams, call: Call
    ) -> AsyncIterator[list[Update]]:
        """Run the call's prompts; yields what is new until all are finished.

        Then `call.outputs` is complete. Raises ApiError, also 504 at the call's
        deadline. However it is left, what still runs is aborted.
        """
        if self._refusal is not None:
            raise self._refusal
        ids = [f"{call.id}-{i}" for i in range(len(prompts))]
        if len(prompts) == 1:
            ids = [call.id]
        facts = (call.arrival, call.log_fields)
        for position, (name, prompt) in enumerate(zip(ids, prompts, strict=True)):
            flying = InFlightRequest(name, position, params, len(prompt), *facts)
            self._requests[name] = (call, flying)
        call.request_ids, call.reserved = ids, 0
        requests = [(i, ids_of, params) for i, ids_of in zip(ids, prompts)]
        self._thread.send(Add(requests, call.cache_salt))
        try:
            while len(call.outputs) < len(ids):
                updates = await call.in_time(call.collector.get())
                for update in updates:
                    if update.output is not None:
                        call.outputs[update.position] = update.output
                yield updates
        finally:
            self.close(call)

    def close(self, call: Call) -> None:
        """Give everything back.

        What still runs is aborted, and counts until the engine has let it go.
        """
        self._release(call.reserved)
        call.reserved = 0
        unfinished = [i for i in call.request_ids if i in self._requests]
        call.request_ids = []
        if unfinished:
            self._thread.send(Abort(unfinished))

    async def drain(self, timeout: float) -> bool:
        """Refuse new calls and wait for the others. After `timeout` seconds they are ended with an error: False."""
        self.state = "draining" if self.state != "dead" else "dead"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout)
            return True
        self._fail_all(ApiError(503, "the server is shutting down", code="draining"))
        return False

    # What the thread reports.

    def _post(self, function: Callable[[Any], None]) -> Callable[[Any], None]:
        def post(value: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: there is no caller left
                self._loop.call_soon_threadsafe(function, value)

        return post

    def _on_ready(self, llm: LLM) -> None:
        # `stats` is safe here: the thread waits for work, which only this loop can send.
        self.llm, self.stats = llm, llm.stats()
        if self.state == "loading":
            self.state = "ready"
        self.ready.set()

    def _on_turn(self, turn: Turn) -> None:
        self.stats = turn.stats
        for output in turn.outputs:
            if output.request_id in self._requests:
                self._deliver(output, turn.time)
        for request_id, error in turn.errors:
            if request_id in self._requests:
                call, request = self._forget(request_id)
                if isinstance(error, ValueError) and not request.started:  # the engine refused it
                    call.collector.fail(invalid_request(error))
                else:
                    self.observer.failed(request)
                    call.collector.fail(engine_error())
        self.observer.turned(turn)

    def _deliver(self, output: RequestOutput, now: float) -> None:
        call, request = self._requests[output.request_id]
        self.observer.progressed(request, output, now)
        if output.finished:
            self._forget(output.request_id)
        if any(chunk.finish_reason == "error" for chunk in output.chunks):
            errors = (getattr(completion, "error", None) for completion in output.completions)
            call.collector.fail(engine_error(next(filter(None, errors), None)))
        elif call.stream or output.finished:
            call.collector.put(
                Update(
                    request.position,
                    output.chunks,
                    output if output.finished else None,
                    output.prompt_logprobs,
                )
            )

    def _on_death(self, error: BaseException) -> None:
        self.state = "dead"
        log(
            "engine died",
            logging.CRITICAL,
            reason=repr(error)[:500],
            exc_info=None if isinstance(error, (ValueError, OSError)) else error,
        )
        self._fail_all(ApiError(503, "the engine has died, the server ends", code="dead"))
        self.dead.set()

    def _fail_all(self, error: ApiError) -> None:
        """End all calls with `error`, also those that have not got to the engine yet."""
        self._refusal = error
        for request_id in list(self._requests):
            self._thread.send(Abort([request_id]))
            call, request = self._forget(request_id)
            self.observer.failed(request)
            call.collector.fail(error)

    def _forget(self, request_id: str) -> tuple[Call, InFlightRequest]:
        call, request = self._requests.pop(request_id)
        self._release(request.params.n)
        return call, request

    def _release(self, num_sequences: int) -> None:
        self.in_flight -= num_sequences
        if self.in_flight == 0:
            self._idle.set()
