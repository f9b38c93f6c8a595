"""The book's routing policies as a request router of Ray Serve. Introduced in chapter 13.

The state that it uses, and how old that may be: `load` is the number of requests that this router has sent and that have
not ended. It is current, because all requests come through one front. The index of prefixes records what this router has
sent. It is lost when the front ends, and fills again with the next requests. The set of replicas is Ray Serve's; a replica
that has died is removed as soon as a request to it fails, or within one period of health checks. A replica that drains is
removed when Ray Serve says so; what is sent to it until then it still answers.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from lib.serving.fleet.routing import make_router


class FleetRequestRouter(RequestRouter):
    """`request_router_kwargs` of the deployment are the arguments of `make_router`.

    Without Ray Serve's FIFOMixin, which gives the replica that was chosen for one request to the oldest one that waits.
    """

    def initialize_state(self, **options: Any) -> None:
        self._policy = make_router(**options)
        self._load: Counter[ReplicaID] = Counter()
        self._known: set[ReplicaID] = set()  # the policy may hold state of these replicas

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The chosen one first; if it refuses or does not answer in time, the others by load."""
        if pending_request is not None:
            # Where all refuse, Ray Serve waits before it asks again; the default is to ask at once, without end.
            pending_request.routing_context.should_backoff = True
        if not candidate_replicas:
            return []
        by_id = {replica.replica_id: replica for replica in candidate_replicas}
        # Sorted, because candidates come in any order and turns need one.
        ids = sorted(by_id, key=lambda replica: replica.unique_id)
        load = {replica: self._load[replica] for replica in ids}
        self._known.update(ids)
        chosen = self._policy.choose(_names(pending_request), ids, load)
        others = sorted((r for r in ids if r != chosen), key=load.__getitem__)
        return [[by_id[replica]] for replica in (chosen, *others)]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Counted here and not once the replica has accepted, so that requests of one moment see each other."""
        super().on_send_request(replica_id)
        self._known.add(replica_id)
        self._load[replica_id] += 1

    def on_request_routed(self, pending_request, replica_id, result) -> None:
        if replica_id in self._known:  # it can have been removed since
            self._policy.sent(_names(pending_request), replica_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Called once for each request that was sent, also where the replica has refused it or has died."""
        if self._load[replica_id] > 0:  # 0: the replica was forgotten with its requests
            self._load[replica_id] -= 1

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._forget(replica_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Ray Serve's view has changed: replicas that are gone or draining take their prefixes with them."""
        super().update_replicas(replicas)
        for replica_id in self._known - {replica.replica_id for replica in replicas}:
            self._forget(replica_id)

    def _forget(self, replica_id: ReplicaID) -> None:
        self._policy.forget(replica_id)
        self._load.pop(replica_id, None)
        self._known.discard(replica_id)


def _names(request: PendingRequest | None) -> list[bytes]:
    """Of a `ForwardedRequest`'s prompt; [] for other calls, such as metrics."""
    return getattr(request.args[0], "names", []) if request is not None and request.args else []
