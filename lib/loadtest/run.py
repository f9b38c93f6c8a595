"""A load test from Python: warm up, drain, measure, and return every raw time. Introduced in chapter 6."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from lib.core.open_files import allow_open_files
from lib.loadtest.client import Target
from lib.loadtest.gauges import Gauges
from lib.loadtest.request_trace import FAILED, RequestTrace
from lib.loadtest.requests import LoadRequest
from lib.loadtest.session import Session

Watcher = Callable[[Session], None]  # called a few times per second while a run goes on


@dataclass
class LoadRun:
    """A run's raw data. `config` says what was asked; `problem`, why it ended early (None: it did not).

    started: `time.perf_counter()` at which all times in `traces` and `gauges` are zero.
    """

    config: dict[str, Any]
    traces: list[RequestTrace]
    warmup: list[RequestTrace] = field(default_factory=list)
    gauges: list[dict[str, Any]] = field(default_factory=list)
    lateness: list[float] = field(default_factory=list)
    problem: str | None = None
    interrupted: bool = False
    started: float = 0.0


def closed_loop(
    target: Target,
    requests: Sequence[LoadRequest],
    concurrency: int,
    *,
    warmup: Sequence[LoadRequest] = (),
    watcher: Watcher | None = None,
) -> LoadRun:
    """`concurrency` users; each sends its next request when its last one has ended, until `requests` are through.

    The warm-up goes first, equally many at a time, and has drained before the clock starts.
    Raises ValueError for concurrency < 1 and for no requests.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency must be >= 1, got {concurrency}")
    return _run(
        target,
        requests,
        warmup,
        concurrency,
        concurrency,
        watcher,
        {"mode": "closed", "concurrency": concurrency},
        lambda session: session.closed(concurrency),
    )


def open_loop(
    target: Target,
    requests: Sequence[LoadRequest],
    arrivals: Sequence[float],
    *,
    max_in_flight: int | None = None,
    warmup: Sequence[LoadRequest] = (),
    watcher: Watcher | None = None,
) -> LoadRun:
    """Sends each request at its time in `arrivals` (seconds, ascending), whether or not others have ended.

    Requests beyond `max_in_flight` wait in the generator. Their time counts from when they were due.
    Raises ValueError for no requests, max_in_flight < 1, and times that are not ascending from 0, one per request.
    """
    times = list(arrivals)
    if len(times) != len(requests) or any(b < a for a, b in zip([0.0, *times], times)):
        raise ValueError(
            f"arrivals must be one time per request, ascending from 0, got {len(times)} for {len(requests)}"
        )
    if max_in_flight is not None and max_in_flight < 1:
        raise ValueError(f"max_in_flight must be >= 1, got {max_in_flight}")
    rate = (len(times) - 1) / times[-1] if times and times[-1] > 0 else None
    return _run(
        target,
        requests,
        warmup,
        max_in_flight or 8,
        max_in_flight or len(times),
        watcher,
        {"mode": "open", "offered_rate": rate, "max_in_flight": max_in_flight},
        lambda session: session.open(times, max_in_flight),
    )


def _run(
    target: Target,
    requests: Sequence[LoadRequest],
    warmup: Sequence[LoadRequest],
    warmup_concurrency: int,
    most_in_flight: int,
    watcher: Watcher | None,
    config: dict[str, Any],
    drive: Callable[[Session], Coroutine],
) -> LoadRun:
    """Runs it in a thread with an event loop of its own: a notebook's loop is in use already."""
    if not requests:
        raise ValueError("requests must be at least one")
    if (too_few := allow_open_files(most_in_flight)) is not None:
        warnings.warn(too_few, stacklevel=3)
    run = LoadRun(
        {
            **config,
            "url": target.base,
            "model": target.model,
            "ignore_eos": target.ignore_eos,
            "requests": len(requests),
            "warmup": len(warmup),
        },
        [],
    )
    current: list[tuple[asyncio.AbstractEventLoop, Session]] = []
    failure: list[BaseException] = []

    async def measure() -> None:
        loop = asyncio.get_running_loop()
        async with target.http() as http, target.http() as side:
            session, main = Session(http, target, warmup), Session(http, target, requests)
            run.warmup, run.traces = session.traces, main.traces
            if warmup:
                current.append((loop, session))
                await session.closed(warmup_concurrency)
                if session.problem or not any(trace.completed for trace in session.traces):
                    first = next((trace.error for trace in session.traces if trace.error), None)
                    run.problem = f"the warm-up failed: {session.problem or first}"
                    return
            gauges = Gauges(side, target.base, main.clock)
            current.append((loop, main))
            helpers = [
                asyncio.ensure_future(gauges.run()),
                asyncio.ensure_future(_call(watcher, main)),
            ]
            try:
                await drive(main)
            finally:
                for helper in helpers:
                    helper.cancel()
                await asyncio.wait(helpers)
            run.gauges, run.lateness = gauges.samples, gauges.lateness
            run.problem, run.started = main.problem, main.started

    def body() -> None:
        try:
            asyncio.run(measure())
        except BaseException as error:  # raised again in the caller's thread
            failure.append(error)
        finally:
            ended.set()

    ended = (
        threading.Event()
    )  # Thread.join takes an interrupted wait for the thread's end (CPython before 3.13)
    threading.Thread(target=body, name="load-generator", daemon=True).start()
    while not ended.is_set():
        try:
            ended.wait(0.2)
        except KeyboardInterrupt:
            run.interrupted = True
            for loop, session in current:
                loop.call_soon_threadsafe(session.cancel, "interrupted", FAILED)
    if failure:
        raise failure[0]
    return run


async def _call(watcher: Watcher | None, session: Session) -> None:
    while watcher is not None:
        await asyncio.sleep(0.2)
        watcher(session)
