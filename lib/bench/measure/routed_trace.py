"""Requests through a router to engine processes, in real time. Introduced in chapter 13.

No HTTP: what is measured is the engines and the choice between them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait

from lib.bench.measure.engine_process import EngineProcess
from lib.serving.fleet.prompt_names import prompt_names
from lib.serving.fleet.routing import Router


@dataclass
class RoutedRequest:
    """One request of a trace. Times in seconds since the trace began; NaN for what did not happen.

    at: when it was due. replica: the number of the process. cached: prompt tokens that were found. tries: processes that it
    was sent to. outcome: "completed", or "failed" where its process ended after the first token.
    """

    at: float
    prompt: Sequence[int] = field(repr=False)
    max_tokens: int
    first: float = math.nan
    last: float = math.nan
    cached: int = 0
    replica: int = -1
    tries: int = 0
    outcome: str = ""
    token_ids: list[int] = field(default_factory=list, repr=False)

    @property
    def ttft(self) -> float:
        return self.first - self.at

    @property
    def begun(self) -> bool:
        """Whether its first token has come, and its end has not."""
        return not math.isnan(self.first) and not self.outcome


def run_trace(
    engines: Sequence[EngineProcess],
    router: Router,
    prompts: Sequence[Sequence[int]],
    arrivals: Sequence[float],
    max_tokens: int,
    block_size: int = 16,
    watch: Callable[[Sequence[RoutedRequest]], None] | None = None,
) -> list[RoutedRequest]:
    """Sends each prompt when it is due, to the engine that `router` chooses, and waits for all answers.

    arrivals: seconds, ascending, one per prompt. The load that the router sees is exact: requests sent and not finished.
    watch: called with the trace after each message of an engine. An engine that ends fails the requests whose first token
    had come; the others go to another engine. Raises RuntimeError where no engine is left.
    """
    trace = [RoutedRequest(at, p, max_tokens) for p, at in zip(prompts, arrivals, strict=True)]
    return _Trace(engines, router, trace, block_size).run(watch)


class _Trace:
    def __init__(self, engines, router, trace, block_size) -> None:
        self.engines = dict(enumerate(engines))
        self.router, self.trace = router, trace
        self.names = [prompt_names(r.prompt, block_size) for r in trace]
        self.load = dict.fromkeys(self.engines, 0)
        self.open: set[int] = set()
        self.began = time.monotonic()

    def run(self, watch) -> list[RoutedRequest]:
        coming = list(range(len(self.trace)))[::-1]
        while coming or self.open:
            now = time.monotonic() - self.began
            while coming and self.trace[coming[-1]].at <= now:
                self.send(coming.pop())
            timeout = max(0.0, self.trace[coming[-1]].at - now) if coming else None
            connections = {e.connection: n for n, e in self.engines.items()}
            for connection in wait(list(connections), timeout):
                self.read(connections[connection])
                if watch is not None:
                    watch(self.trace)
        return self.trace

    def send(self, index: int) -> None:
        request = self.trace[index]
        while True:
            if not self.engines:
                raise RuntimeError("no engine process is left")
            chosen = self.router.choose(self.names[index], list(self.engines), self.load)
            try:
                self.engines[chosen].add(index, request.prompt, request.max_tokens)
                break
            except OSError:
                self.lose(chosen)
        request.replica, request.tries = chosen, request.tries + 1
        self.load[chosen] += 1
        self.open.add(index)

    def read(self, number: int) -> None:
        if number not in self.engines:  # lost while another one's requests were sent to it
            return
        try:
            messages = self.engines[number].receive()
        except EOFError:
            self.lose(number)
            return
        for what, index, value, at in messages:
            request = self.trace[index]
            if what == "first":
                request.first, request.cached = at - self.began, value
            else:
                request.last, request.token_ids = at - self.began, value
                self.close(index, "completed")

    def close(self, index: int, outcome: str) -> None:
        self.open.discard(index)
        self.load[self.trace[index].replica] -= 1
        self.trace[index].outcome = outcome

    def lose(self, number: int) -> None:
        """An engine has ended."""
        del self.engines[number]
        self.router.forget(number)
        again = []
        for index in sorted(i for i in self.open if self.trace[i].replica == number):
            if not self.trace[index].begun:
                self.open.discard(index)
                again.append(index)
            else:
                self.close(index, "failed")
        del self.load[number]
        for index in again:
            self.send(index)
