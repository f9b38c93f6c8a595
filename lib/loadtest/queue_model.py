"""A server as a model: steps of a + b n seconds, each of which gives every running sequence one token.

Predicts a finite load test, with its start and its end, from two numbers and the arrivals. No clock, no network.

Introduced in chapter 6.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StepLine:
    """Duration of a step with n sequences: `shared` + `each` · n seconds. Raises ValueError unless both are >= 0, and one > 0."""

    shared: float
    each: float

    def __post_init__(self) -> None:
        if min(self.shared, self.each) < 0 or not self.shared + self.each > 0:
            raise ValueError(
                f"shared={self.shared}, each={self.each}: must be >= 0, and one of them > 0"
            )

    def __call__(self, n: int) -> float:
        return self.shared + self.each * n

    def throughput(self, n: int) -> float:
        """Tokens per second of n sequences that never pause."""
        return n / self(n)

    def capacity(self, seats: int, answer: int) -> float:
        """Answers of `answer` tokens per second with all `seats` taken."""
        return seats / (answer * self(seats))


@dataclass
class Served:
    """One request in the model: seconds when it arrived, and when its first and last token came; None: refused."""

    arrived: float
    first: float | None = None
    last: float | None = None
    left: int = 0  # tokens still to come

    @property
    def refused(self) -> bool:
        return self.last is None


def serve(
    arrivals: Sequence[float],
    answer: int,
    line: StepLine,
    seats: int,
    limit: int | None = None,
) -> list[Served]:
    """Runs arrivals (seconds, ascending) through the server; one Served each, in order.

    At most `seats` sequences run, in order of arrival; a request that finds `limit`
    others inside is refused. Raises ValueError for answer, seats or limit below 1.
    """
    for name, value in (
        ("answer", answer),
        ("seats", seats),
        ("limit", 1 if limit is None else limit),
    ):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    served = [Served(at, left=answer) for at in arrivals]
    coming, waiting, running = deque(served), deque(), []
    now = 0.0
    while coming or waiting or running:
        _admit(coming, now, waiting, len(running), limit)
        while waiting and len(running) < seats:
            running.append(waiting.popleft())
        if not running:
            now = coming[0].arrived if coming else now
            continue
        now += line(len(running))
        # Those that came during the step: all that run are still inside.
        _admit(coming, now, waiting, len(running), limit)
        for request in running:
            request.first = now if request.first is None else request.first
            request.left -= 1
            request.last = None if request.left else now
        running = [request for request in running if request.left]
    return served


def _admit(
    coming: deque[Served], until: float, waiting: deque[Served], running: int, limit: int | None
) -> None:
    """Moves all that arrive by `until` into the queue; those that find `limit` inside leave without an answer."""
    while coming and coming[0].arrived <= until:
        request = coming.popleft()
        if limit is None or len(waiting) + running < limit:
            waiting.append(request)


def expected(served: Sequence[Served], answer: int, slo: Mapping[str, float]) -> dict[str, float]:
    """What a load test of these requests would report, under the names of `lib.loadtest.stats.summarize`.

    slo: limits in seconds for "ttft" and "tpot". ttft is the mean; the rates are per second until the last answer.
    """
    done = [request for request in served if not request.refused]
    duration = max(request.last for request in done)
    waits = [request.first - request.arrived for request in done]
    paces = [(request.last - request.first) / max(1, answer - 1) for request in done]
    good = sum(w <= slo["ttft"] and p <= slo["tpot"] for w, p in zip(waits, paces))
    return {
        "ttft": sum(waits) / len(done),
        "request_throughput": len(done) / duration,
        "goodput": good / duration,
        "rejected_fraction": 1 - len(done) / len(served),
    }
