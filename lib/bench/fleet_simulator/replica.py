"""One replica of a simulation: continuous batching with a prefix cache, as chapters 3 and 9 built it.

A step gives one token to each decoding sequence and computes prompt tokens within the budget. Steps in which nothing
changes are taken together, so the work of a simulation grows with the requests and not with their tokens.

Introduced in chapter 13.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass

from lib.bench.fleet_simulator.requests import SimulatedRequest
from lib.bench.fleet_simulator.step_cost import Cost


@dataclass(frozen=True)
class ReplicaOptions:
    """What all replicas have in common. Raises ValueError, naming the field, out of its range.

    cache_tokens: tokens that the prefix cache keeps; 0 keeps none. max_waiting: requests that may wait at a replica, which
    refuses more; None is no limit. There is always memory for `max_num_seqs` sequences: nothing is preempted.
    """

    cost: Cost
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    cache_tokens: int = 0
    max_waiting: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_num_seqs", 1), ("max_num_batched_tokens", 1), ("cache_tokens", 0),
                            ("max_waiting", 0)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens must be >= max_num_seqs={self.max_num_seqs}, "
                f"got {self.max_num_batched_tokens}"
            )


class Replica:
    """One replica. Call `add` for each request, and `advance` at the time `wake`: it returns the requests that ended then.

    wake: end of the current steps; infinity while idle. load: requests here, running or waiting. version: changes with
    `wake`, so that outdated events can be recognised. busy: seconds in steps.
    """

    __slots__ = (
        "id", "options", "load", "wake", "version", "busy", "draining", "waiting",
        "_decoding", "_prefilling", "_chunks", "_steps", "_began", "_step", "_count", "_order",
        "_cached", "_cached_tokens", "_pending",
    )  # fmt: skip

    def __init__(self, replica_id: int, options: ReplicaOptions) -> None:
        self.id, self.options = replica_id, options
        self.load, self.wake, self.version, self.busy = 0, math.inf, 0, 0.0
        self.draining = False
        self.waiting: deque[tuple[SimulatedRequest, bool]] = deque()  # True: only decoding is left
        # A heap: (step that ends the request, order, request).
        self._decoding: list[tuple[int, int, SimulatedRequest]] = []
        self._prefilling: deque[list] = deque()  # [request, prompt tokens left]
        self._chunks: list[list] = []  # of the current step: those whose prompt it completes
        self._steps = self._count = self._order = 0
        self._began = self._step = 0.0
        self._cached: OrderedDict[int, int] = OrderedDict()  # name: tokens, least recent first
        self._cached_tokens = 0
        self._pending: Counter[int] = Counter()  # names that running prompts will publish

    @property
    def full(self) -> bool:
        limit = self.options.max_waiting
        return limit is not None and self.load >= self.options.max_num_seqs + limit

    def add(self, request: SimulatedRequest, now: float, decode_only: bool = False) -> None:
        """A request arrives.

        decode_only: its prompt and first token were computed by another replica.
        """
        self.load += 1
        self.waiting.append((request, decode_only))
        if self.wake == math.inf:  # its first step begins with all that arrive at this moment
            self.wake = self._began = now
            self.version += 1
        elif self._count > 1 and self.load - len(self.waiting) < self.options.max_num_seqs:
            # It is admitted at the end of the step that runs now:
            # the event must end there, and not after the later steps.
            done = max(1, math.ceil((now - self._began) / self._step))
            if done < self._count:
                self._count = done
                self.wake = self._began + done * self._step
                self.version += 1

    def advance(self, now: float) -> list[SimulatedRequest]:
        """The steps until `wake` have ended: starts the next ones.

        Returns the requests that got their last token here.
        """
        self._steps += self._count
        self.busy += now - self._began
        ended = []
        decoding = self._decoding
        while decoding and decoding[0][0] <= self._steps:
            request = heapq.heappop(decoding)[2]
            request.last = now
            ended.append(request)
        for request, _ in self._chunks:
            request.first = now
            self._publish(request)
            if request.answer <= 1:
                request.last = now
                ended.append(request)
            else:
                self._decode(request, request.answer - 1)
        self._chunks = []
        self.load -= len(ended)
        self._start(now)
        return ended

    def stop(self) -> tuple[list[SimulatedRequest], list[tuple[SimulatedRequest, bool]]]:
        """Ends a lost replica: (requests that were admitted, those still in the queue)."""
        begun = [entry[2] for entry in self._decoding]
        begun += [entry[0] for entry in self._prefilling]
        begun += [entry[0] for entry in self._chunks]
        waiting = list(self.waiting)
        self.waiting.clear()
        self._decoding, self._chunks = [], []
        self._prefilling.clear()
        self.load, self.wake = 0, math.inf
        self.version += 1
        return begun, waiting

    def _decode(self, request: SimulatedRequest, tokens: int) -> None:
        self._order += 1
        heapq.heappush(self._decoding, (self._steps + tokens, self._order, request))

    def _start(self, now: float) -> None:
        """Admits, and begins the next step, or all steps up to the next change."""
        options, decoding, prefilling = self.options, self._decoding, self._prefilling
        while self.waiting and len(decoding) + len(prefilling) < options.max_num_seqs:
            request, decode_only = self.waiting[0]
            if decode_only:
                self._decode(request, request.answer - 1)
            else:
                found = self._find(request)
                if found is None:
                    break
                prefilling.append([request, request.prompt - found])
            self.waiting.popleft()
        self.version += 1
        self._began = now
        sequences, tokens = len(decoding), 0
        if prefilling:
            budget = options.max_num_batched_tokens - sequences
            while prefilling and budget > 0:
                entry = prefilling[0]
                chunk = min(entry[1], budget)
                entry[1] -= chunk
                budget -= chunk
                tokens += chunk
                if entry[1]:
                    break
                self._chunks.append(prefilling.popleft())
        if not sequences and not tokens:
            self.wake, self._count = math.inf, 0
            return
        self._count = 1 if tokens else decoding[0][0] - self._steps
        self._step = options.cost(sequences, tokens)
        self.wake = now + self._count * self._step

    # The prefix cache, by segments: least recently used first, and of one prompt the last segment first.

    def _find(self, request: SimulatedRequest) -> int | None:
        """Tokens of the prompt that are cached; None while a running prompt computes the next segment that it needs."""
        if not self.options.cache_tokens or not request.names:
            return 0
        matched = 0
        for name in request.names:
            if name not in self._cached:
                if self._pending[name] > 0:
                    return None
                break
            matched += 1
        for name in reversed(request.names[:matched]):
            self._cached.move_to_end(name)
        for name in request.names:
            self._pending[name] += 1
        request.found = min(request.ends[matched - 1], request.prompt - 1) if matched else 0
        return request.found

    def _publish(self, request: SimulatedRequest) -> None:
        if not self.options.cache_tokens or not request.names:
            return
        starts = (0, *request.ends)
        for i in range(len(request.names) - 1, -1, -1):
            name = request.names[i]
            self._pending[name] -= 1
            if self._pending[name] <= 0:
                del self._pending[name]
            if name not in self._cached:
                tokens = request.ends[i] - starts[i]
                self._cached[name] = tokens
                self._cached_tokens += tokens
            self._cached.move_to_end(name)
        while self._cached_tokens > self.options.cache_tokens:
            _, tokens = self._cached.popitem(last=False)
            self._cached_tokens -= tokens
