"""Closed loop and open loop: when each request is sent, and when the run is given up. Introduced in chapter 6."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine, Sequence
from contextlib import nullcontext, suppress

import httpx

from lib.loadtest.client import ServerGone, Target, send
from lib.loadtest.request_trace import TIMEOUT, RequestTrace
from lib.loadtest.requests import LoadRequest


class Session:
    """Sends a list of requests and ends the run when the server is silent. Belongs to one event loop."""

    def __init__(
        self, http: httpx.AsyncClient, target: Target, requests: Sequence[LoadRequest]
    ) -> None:
        # Encoded beforehand, so that nothing but sending is left to do when a request is due.
        self._bodies = [
            json.dumps(r.body(target.model, target.ignore_eos)).encode() for r in requests
        ]
        self.traces = [RequestTrace(i) for i in range(len(requests))]
        self.problem: str | None = None
        self.in_flight: dict[asyncio.Future, RequestTrace] = {}
        self._http, self._target = http, target
        self._over = asyncio.Event()
        self.started = self._heard_at = 0.0

    def clock(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.started

    async def closed(self, concurrency: int) -> None:
        queue = iter(self.traces)

        async def user() -> None:
            due = 0.0
            for trace in queue:  # shared: each trace goes to one user
                if self._over.is_set():
                    return
                trace.scheduled = trace.ready = due
                await self._one(trace)
                due = trace.end

        users = min(concurrency, len(self.traces))
        await self._watched(*(user() for _ in range(users)))

    async def open(self, arrivals: Sequence[float], max_in_flight: int | None) -> None:
        limited = max_in_flight is not None
        places = asyncio.Semaphore(max_in_flight) if limited else None
        for trace, at in zip(self.traces, arrivals):
            trace.scheduled = at

        async def place(trace: RequestTrace) -> None:
            free = places is None or not places.locked()
            async with nullcontext() if places is None else places:
                if not self._over.is_set():
                    trace.ready = trace.scheduled if free else self.clock()
                    await self._one(trace)

        async def dispatch() -> None:
            tasks = []
            for trace in self.traces:
                if (delay := trace.scheduled - self.clock()) > 0:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._over.wait(), delay)
                if self._over.is_set():
                    break
                tasks.append(asyncio.create_task(place(trace)))
            await asyncio.gather(*tasks)

        await self._watched(dispatch())

    def cancel(self, why: str, outcome: str) -> None:
        """Ends the run now: requests in flight end as `outcome`, those not sent stay unsent."""
        self._give_up(why)
        for task, trace in self.in_flight.items():
            trace.outcome, trace.error = outcome, why
            task.cancel()

    def _give_up(self, why: str) -> None:
        self.problem = self.problem or why
        self._over.set()

    async def _one(self, trace: RequestTrace) -> None:
        if not self.in_flight:
            self._heard()
        task = asyncio.ensure_future(
            send(
                self._http, self._target, self._bodies[trace.index], trace, self.clock, self._heard
            )
        )
        self.in_flight[task] = trace
        try:
            await asyncio.wait({task})
        finally:
            del self.in_flight[task]
        if not task.cancelled():
            try:
                task.result()
            except ServerGone as gone:  # those still in flight will notice for themselves
                self._give_up(str(gone))
        elif trace.end is None:  # before it began
            trace.sent = trace.end = self.clock()

    def _heard(self) -> None:
        self._heard_at = self.clock()

    async def _watched(self, *work: Coroutine) -> None:
        self.started = time.perf_counter()
        watch = asyncio.ensure_future(self._watch())
        try:
            await asyncio.gather(*work)
        finally:
            watch.cancel()

    async def _watch(self) -> None:
        limit = self._target.stall_timeout
        while True:
            await asyncio.sleep(min(0.25, limit / 10))
            if self.in_flight and self.clock() - self._heard_at > limit:
                self.cancel(
                    f"not a byte from the server for {limit:g} s, with {len(self.in_flight)} requests in flight",
                    TIMEOUT,
                )
