"""Replicas that share a router: the choice for each request, and the loads that the router sees.

Introduced in chapter 13.
"""

from __future__ import annotations

from lib.bench.fleet_simulator.replica import Replica
from lib.bench.fleet_simulator.requests import SimulatedRequest
from lib.serving.fleet.routing import Router


class Pool:
    """Replicas behind one router. `active`: those that take requests, by number, in the order of `ids`.

    load_age: seconds between two reports of the loads; in between the router sees the last report. 0: current loads.
    """

    def __init__(self, router: Router, load_age: float = 0.0) -> None:
        if not load_age >= 0:
            raise ValueError(f"load_age must be >= 0, got {load_age}")
        self.router, self.load_age = router, load_age
        self.active: dict[int, Replica] = {}
        self.ids: list[int] = []
        self.load: dict[int, int] = {}
        self._seen: dict[int, int] = self.load
        self._seen_at = 0.0

    def add(self, replica: Replica) -> None:
        self.active[replica.id] = replica
        self.ids.append(replica.id)
        self.load[replica.id] = replica.load
        self._seen = dict(self.load) if self.load_age else self.load

    def remove(self, replica: Replica) -> None:
        """Sends no more requests to this replica. Does nothing if it was removed before."""
        if self.active.pop(replica.id, None) is not None:
            self.ids.remove(replica.id)
            del self.load[replica.id]
            self._seen.pop(replica.id, None)
        self.router.forget(replica.id)

    def choose(self, request: SimulatedRequest, now: float) -> Replica | None:
        """The replica for a request; None where the pool has none, or the chosen one refuses."""
        if not self.ids:
            return None
        if self.load_age and now - self._seen_at >= self.load_age:
            self._seen, self._seen_at = dict(self.load), now
        replica = self.active[self.router.choose(request.names, self.ids, self._seen)]
        return None if replica.full else replica
