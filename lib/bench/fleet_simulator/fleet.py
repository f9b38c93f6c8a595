"""The simulation of a fleet as one heap of events. Introduced in chapter 13.

Assumptions, besides those of `ReplicaOptions`: routing and the network take no time; a client whose request fails or is
refused does not try again; replicas differ in nothing but their load and their cache.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from lib.bench.fleet_simulator.events import Autoscaler, Disaggregation, Failure
from lib.bench.fleet_simulator.pool import Pool
from lib.bench.fleet_simulator.replica import Replica, ReplicaOptions
from lib.bench.fleet_simulator.report import Report
from lib.bench.fleet_simulator.requests import COMPLETED, FAILED, REJECTED, SimulatedRequest
from lib.serving.fleet.routing import Router, make_router


def simulate(
    requests: Sequence[SimulatedRequest],
    options: ReplicaOptions,
    replicas: int,
    router: Router | str = "power_of_two",
    *,
    load_age: float = 0.0,
    failures: Sequence[Failure] = (),
    autoscaler: Autoscaler | None = None,
    disaggregation: Disaggregation | None = None,
) -> Report:
    """Runs requests, in order of `at`, through a fleet. Their outcomes are written into them, and the report reads them.

    replicas: how many there are at the beginning. router: a policy, or its name. Raises ValueError for replicas below 1,
    requests out of order, a failure of a replica that does not exist, and an autoscaler together with disaggregation.
    """
    fleet = _Fleet(options, replicas, router, load_age, autoscaler, disaggregation)
    for failure in failures:
        if not all(0 <= number < replicas for number in failure.replicas):
            raise ValueError(f"replicas must be 0 to {replicas - 1}, got {failure.replicas}")
        fleet.at(failure.at, fleet.fail, failure)
    fleet.run(requests)
    return fleet.report(requests)


class _Fleet:
    def __init__(self, options, replicas, router, load_age, autoscaler, disaggregation) -> None:
        if replicas < 1:
            raise ValueError(f"replicas must be >= 1, got {replicas}")
        split = 0 if disaggregation is None else disaggregation.prefill_replicas
        if disaggregation is not None and autoscaler is not None:
            raise ValueError("autoscaler must be None with disaggregation: its pools are fixed")
        if disaggregation is not None and split >= replicas:
            raise ValueError(f"prefill_replicas must be < replicas={replicas}, got {split}")
        router = make_router(router) if isinstance(router, str) else router
        self.options, self.autoscaler, self.disaggregation = options, autoscaler, disaggregation
        self.pool = Pool(router, load_age)
        self.decode_pool = Pool(make_router("power_of_two", seed=1)) if split else None
        self.replicas: list[Replica] = []
        # (time, order, replica, its version) or (time, order, action, its argument)
        self.events: list[tuple] = []
        self.order = self.starting = self.fewer = self.unfinished = 0
        self.now = self.paid = 0.0
        self.paid_since: dict[int, float] = {}
        self.held: list[tuple[SimulatedRequest, bool]] = []  # while no replica takes requests
        self.counts: list[tuple[float, int]] = []  # replicas over time
        for number in range(replicas):
            self.start(self.decode_pool if split and number >= split else self.pool)
        self.counts = [(0.0, replicas)]
        if autoscaler is not None:
            self.at(autoscaler.interval, self.scale, None)

    def run(self, requests: Sequence[SimulatedRequest]) -> None:
        self.unfinished = len(requests)
        events, previous = self.events, 0.0
        coming = iter(requests)
        request = next(coming, None)
        while self.unfinished:
            if request is not None and (not events or request.at <= events[0][0]):
                if request.at < previous:
                    raise ValueError(f"requests must be in order of at, got {request.at} after {previous}")  # fmt: skip
                previous = self.now = request.at
                self.dispatch(request)
                request = next(coming, None)
            elif events:
                self.now, _, what, argument = heapq.heappop(events)
                if type(what) is Replica:
                    if argument == what.version:
                        self.advance(what)
                else:
                    what(argument)
            else:  # all replicas are lost, and none comes back
                for held, _ in self.held:
                    self.end(held, FAILED)
                self.held = []

    def at(self, time: float, action: Callable, argument: object) -> None:
        self.order += 1
        heapq.heappush(self.events, (time, self.order, action, argument))

    def report(self, requests: Sequence[SimulatedRequest]) -> Report:
        paid = self.paid + sum(self.now - since for since in self.paid_since.values())
        return Report(requests, self.now, paid, [r.busy for r in self.replicas], self.counts)

    # Requests.

    def dispatch(self, request: SimulatedRequest, decode_only: bool = False) -> None:
        pool = self.decode_pool if decode_only else self.pool
        replica = pool.choose(request, self.now)
        if replica is None:
            if pool.ids or not self.may_recover:
                self.end(request, REJECTED)
            else:
                self.held.append((request, decode_only))
            return
        request.tries += 1
        request.replica = replica.id
        pool.load[replica.id] += 1
        if self.decode_pool is not None and not decode_only:
            request = _PromptOnly(request)
        version = replica.version
        replica.add(request, self.now, decode_only)
        if replica.version != version:
            self.schedule(replica)

    @property
    def may_recover(self) -> bool:
        """Whether an event is left that may add a replica. Old events of lost replicas count too, without effect."""
        return bool(self.events)

    def schedule(self, replica: Replica) -> None:
        self.order += 1
        heapq.heappush(self.events, (replica.wake, self.order, replica, replica.version))

    def advance(self, replica: Replica) -> None:
        pool = self.pool_of(replica)
        ended = replica.advance(self.now)
        if replica.id in pool.load:
            pool.load[replica.id] = replica.load
        for request in ended:
            if type(request) is _PromptOnly:
                self.hand_over(request)
            else:
                self.end(request, COMPLETED)
        if replica.load:
            self.schedule(replica)
        elif replica.draining:
            self.stop_paying(replica)

    def hand_over(self, part: _PromptOnly) -> None:
        request = part.whole
        request.first, request.found = part.first, part.found
        if request.answer <= 1:
            request.last = request.first
            self.end(request, COMPLETED)
            return
        delay = self.disaggregation.transfer_per_token * request.prompt
        self.at(self.now + delay, self.decode, request)

    def decode(self, request: SimulatedRequest) -> None:
        self.dispatch(request, decode_only=True)

    def end(self, request: SimulatedRequest, outcome: str) -> None:
        if type(request) is _PromptOnly:
            request = request.whole
        request.outcome = outcome
        self.unfinished -= 1

    # Replicas.

    def pool_of(self, replica: Replica) -> Pool:
        split = self.decode_pool is not None
        return self.decode_pool if split and replica.id >= self.disaggregation.prefill_replicas else self.pool  # fmt: skip

    def start(self, pool: Pool) -> None:
        replica = Replica(len(self.replicas), self.options)
        self.replicas.append(replica)
        self.paid_since[replica.id] = self.now
        self.join(pool, replica)

    def join(self, pool: Pool, replica: Replica) -> None:
        pool.add(replica)
        self.count()
        held, self.held = self.held, []
        for request, decode_only in held:
            self.dispatch(request, decode_only)

    def count(self) -> None:
        pools = (self.pool,) if self.decode_pool is None else (self.pool, self.decode_pool)
        self.counts.append((self.now, sum(len(pool.ids) for pool in pools)))

    def stop_paying(self, replica: Replica) -> None:
        since = self.paid_since.pop(replica.id, None)
        self.paid += 0.0 if since is None else self.now - since

    def fail(self, failure: Failure) -> None:
        """Ends all lost replicas first and then routes their waiting requests, so that none goes to a lost replica."""
        lost = [self.replicas[number] for number in failure.replicas]
        lost = [replica for replica in lost if replica.id in self.paid_since]
        waiting: list[tuple[SimulatedRequest, bool]] = []
        for replica in lost:
            self.pool_of(replica).remove(replica)
            self.stop_paying(replica)
            begun, not_begun = replica.stop()
            for request in begun:
                self.end(request, FAILED)
            waiting += not_begun
            if failure.restart_after is not None:
                self.at(self.now + failure.restart_after, self.restart, replica)
        self.count()
        for request, decode_only in waiting:
            whole = request.whole if type(request) is _PromptOnly else request
            self.dispatch(whole, decode_only)

    def restart(self, lost: Replica) -> None:
        """A new process in the place of the lost one, under its number."""
        replica = Replica(lost.id, self.options)
        replica.busy = lost.busy
        self.replicas[lost.id] = replica
        self.paid_since[replica.id] = self.now
        self.join(self.pool_of(replica), replica)

    def scale(self, _: object) -> None:
        scaler, pool = self.autoscaler, self.pool
        wanted = scaler.wanted(sum(pool.load.values()) + len(self.held))
        there = len(pool.ids) + self.starting
        self.fewer = self.fewer + 1 if wanted < there else 0
        for _ in range(wanted - there):
            self.starting += 1
            self.at(self.now + scaler.startup, self.started, self.now)
        if self.fewer > scaler.patience and not self.starting:
            # The least loaded finish first.
            for number in sorted(pool.ids, key=pool.load.__getitem__)[: there - wanted]:
                replica = pool.active[number]
                pool.remove(replica)
                replica.draining = True
                if not replica.load:
                    self.stop_paying(replica)
            self.count()
            self.fewer = 0
        self.at(self.now + scaler.interval, self.scale, None)

    def started(self, since: float) -> None:
        self.starting -= 1
        self.start(self.pool)
        self.paid_since[self.replicas[-1].id] = since


class _PromptOnly(SimulatedRequest):
    """The part of a request at a prefill replica: its prompt and its first token."""

    __slots__ = ("whole",)

    def __init__(self, whole: SimulatedRequest) -> None:
        super().__init__(whole.at, whole.prompt, 1, whole.names, whole.ends)
        self.whole = whole
