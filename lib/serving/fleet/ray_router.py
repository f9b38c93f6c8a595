"""The book's routing policies as a request router of Ray Serve. Introduced in chapter 13.

The state that it uses, and how old that may be: `load` is the number of requests that this router has sent and that have
not ended. It is exact and current, because all requests come through one front. The index of prefixes records what this
router has sent. It is lost when the front ends, and fills again with the next requests. The set of replicas is Ray Serve's;
a replica that has died is removed as soon as a request to it fails, or within one period of health checks.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from ray.serve.request_router import (
    FIFOMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

from lib.serving.fleet.routing import make_router


class FleetRequestRouter(FIFOMixin, RequestRouter):
    """`request_router_kwargs` of the deployment are the arguments of `make_router`."""

    def initialize_state(self, **options: Any) -> None:
        self._policy = make_router(**options)
        self._load: Counter[ReplicaID] = Counter()
        self._sent: dict[tuple[ReplicaID, str], None] = {}  # not ended yet

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The chosen one first; if it refuses or does not answer in time, the others by load."""
        if not candidate_replicas:
            return []
        by_id = {replica.replica_id: replica for replica in candidate_replicas}
        # Sorted, because candidates come in any order and turns need one.
        ids = sorted(by_id, key=lambda replica: replica.unique_id)
        load = {replica: self._load[replica] for replica in ids}
        chosen = self._policy.choose(_names(pending_request), ids, load)
        others = sorted((r for r in ids if r != chosen), key=load.__getitem__)
        return [[by_id[replica]] for replica in (chosen, *others)]

    def on_request_routed(self, pending_request, replica_id, result) -> None:
        self._sent[replica_id, pending_request.metadata.internal_request_id] = None
        self._load[replica_id] += 1
        self._policy.sent(_names(pending_request), replica_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        if (replica_id, internal_request_id) in self._sent:
            del self._sent[replica_id, internal_request_id]
            self._load[replica_id] -= 1

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._forget(replica_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Ray Serve's view has changed: replicas that are gone or draining take their prefixes with them."""
        super().update_replicas(replicas)
        there = {replica.replica_id for replica in replicas}
        for replica_id in [r for r in self._load if r not in there]:
            self._forget(replica_id)

    def _forget(self, replica_id: ReplicaID) -> None:
        self._policy.forget(replica_id)
        self._load.pop(replica_id, None)
        for key in [key for key in self._sent if key[0] == replica_id]:
            del self._sent[key]


def _names(request: PendingRequest | None) -> list[bytes]:
    """Of a `ForwardedRequest`'s prompt; [] for other calls, such as metrics."""
    return getattr(request.args[0], "names", []) if request is not None and request.args else []
