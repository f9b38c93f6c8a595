"""Results of a simulation: outcomes, latencies, hit rate, cost. Introduced in chapter 13."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lib.bench.fleet_simulator.requests import COMPLETED, SimulatedRequest
from lib.bench.measure.percentiles import percentile


@dataclass(frozen=True)
class Report:
    """requests: with their outcomes. duration: seconds until the last one ended. replica_seconds: paid for, all replicas.

    busy: by replica, seconds in steps. counts: (second, replicas that take requests), at each change.
    """

    requests: Sequence[SimulatedRequest] = field(repr=False)
    duration: float
    replica_seconds: float
    busy: Sequence[float]
    counts: Sequence[tuple[float, int]]

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(request.outcome for request in self.requests)

    @property
    def completed(self) -> list[SimulatedRequest]:
        return [request for request in self.requests if request.outcome == COMPLETED]

    def ttft(self, q: float) -> float:
        """The q-th percentile of the completed requests' TTFT, in seconds. ValueError where none completed."""
        return percentile([request.ttft for request in self.completed], q)

    def tpot(self, q: float) -> float:
        """The q-th percentile of seconds per token after the first, of answers of at least two tokens."""
        return percentile([r.tpot for r in self.completed if r.answer > 1], q)

    @property
    def hit_rate(self) -> float:
        """Prompt tokens found over prompt tokens, of the completed requests."""
        completed = self.completed
        return sum(r.found for r in completed) / sum(r.prompt for r in completed)

    @property
    def output_throughput(self) -> float:
        """Tokens per second of the completed requests."""
        return sum(request.answer for request in self.completed) / self.duration

    def attainment(self, ttft: float, tpot: float) -> float:
        """Share of all requests that completed within both limits, in seconds."""
        good = sum(r.ttft <= ttft and r.tpot <= tpot for r in self.completed)
        return good / len(self.requests)

    def cost(self, price_per_hour: float) -> float:
        """Price of the replicas, for a price of one replica per hour."""
        return self.replica_seconds / 3600 * price_per_hour

    def over_time(
        self, width: float, value: Callable[[list[SimulatedRequest]], float]
    ) -> tuple[list[float], list[float | None]]:
        """(middles in seconds, values) over windows of `width` seconds of arrival; None for a window without requests."""
        windows: dict[int, list[SimulatedRequest]] = {}
        for request in self.requests:
            windows.setdefault(int(request.at // width), []).append(request)
        last = max(windows, default=-1)
        middles = [(i + 0.5) * width for i in range(last + 1)]
        return middles, [value(windows[i]) if i in windows else None for i in range(last + 1)]

    def most_present(self, width: float) -> list[int]:
        """By window of arrival, the most requests at one replica just after an arrival, running or waiting.

        Of the completed requests, each at the replica that completed it: a failed one's end is not known.
        """
        ends: dict[int, list[float]] = {}
        windows: dict[int, int] = {}
        for request in self.completed:
            there = ends.setdefault(request.replica, [])
            while there and there[0] <= request.at:
                heapq.heappop(there)
            heapq.heappush(there, request.last)
            window = int(request.at // width)
            windows[window] = max(windows.get(window, 0), len(there))
        last = max((int(request.at // width) for request in self.requests), default=-1)
        return [windows.get(i, 0) for i in range(last + 1)]
