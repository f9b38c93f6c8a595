"""The request router as Ray Serve calls it, without a cluster: load, prefixes, and replicas that come and go."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.skipif(
    find_spec("ray") is None, reason="ray is not installed: pip install -e '.[fleet]'"
)

NAMES = [b"1", b"2", b"3"]


class Replica:
    """What the router asks of a replica; `running`: its requests, or None where it has died."""

    max_ongoing_requests = 2

    def __init__(self, name):
        from ray.serve._private.common import DeploymentID, ReplicaID

        self.replica_id = ReplicaID(name, DeploymentID("Engine", "default"))
        self.running = 0

    async def get_queue_len(self, deadline_s):
        from ray.exceptions import ActorDiedError

        if self.running is None:
            raise ActorDiedError
        return self.running


def make(policy="longest_prefix", **options):
    """Call it in a running event loop."""
    from ray.serve._private.common import DeploymentHandleSource, DeploymentID

    from lib.serving.fleet.ray_router import FleetRequestRouter

    router = FleetRequestRouter(
        deployment_id=DeploymentID("Engine", "default"),
        handle_source=DeploymentHandleSource.REPLICA,
        use_replica_queue_len_cache=True,
    )
    router.initialize_state(policy=policy, **options)
    return router


def pending(number, names=NAMES):
    """A request as Ray Serve hands it over. Call it in a running event loop."""
    from ray.serve.request_router import PendingRequest

    metadata = SimpleNamespace(
        internal_request_id=str(number), request_id=str(number), multiplexed_model_id=""
    )
    return PendingRequest(args=[SimpleNamespace(names=names)], kwargs={}, metadata=metadata)


async def send(router, number, names=NAMES):
    """One request through the router and to the replica that it chose, which accepts; returns that."""
    request = pending(number, names)
    replica = await router._choose_replica_for_request(request)
    router.on_send_request(replica.replica_id)
    router.on_request_routed(request, replica.replica_id, None)
    return replica


def test_requests_of_one_moment_see_each_other():
    async def go():
        router = make("least_loaded")
        router.update_replicas([Replica("a"), Replica("b")])
        chosen = [await router._choose_replica_for_request(pending(0))]
        router.on_send_request(chosen[0].replica_id)  # not yet accepted
        chosen.append(await router._choose_replica_for_request(pending(1)))
        return chosen

    first, second = asyncio.run(go())
    assert first is not second


def test_a_request_that_ends_before_its_acceptance_is_read_is_not_counted_for_ever():
    async def go():
        router = make()
        router.update_replicas([replica := Replica("a")])
        request = pending(0)
        await router._choose_replica_for_request(request)
        router.on_send_request(replica.replica_id)
        router.on_request_completed(replica.replica_id, "0")
        router.on_request_routed(request, replica.replica_id, None)
        return router._load[replica.replica_id]

    assert asyncio.run(go()) == 0


def test_each_request_gets_the_replica_that_was_chosen_for_it():
    """Two at the same moment, of which the first one waits for a probe: it may not get the second one's replica."""

    async def go():
        router = make(min_match=1)
        replicas = {name: Replica(name) for name in "ab"}
        router.update_replicas(list(replicas.values()))
        await asyncio.sleep(0)
        router._policy.index.add([b"x"], replicas["a"].replica_id)
        router._policy.index.add([b"y"], replicas["b"].replica_id)
        # The queue of a looks full, so that Ray Serve asks a; that of b is known to be short.
        router.replica_queue_len_cache.update(replicas["a"].replica_id, 2)
        router.replica_queue_len_cache.update(replicas["b"].replica_id, 0)
        wanted = [pending(0, [b"x"]), pending(1, [b"y"])]
        got = await asyncio.gather(*map(router._choose_replica_for_request, wanted))
        return [replica.replica_id.unique_id for replica in got]

    assert asyncio.run(go()) == ["a", "b"]


def test_a_full_fleet_is_asked_again_after_a_pause():
    async def go():
        router = make()
        router.update_replicas([replica := Replica("a")])
        replica.running = 2
        calls = 0
        given = router.choose_replicas

        async def counted(*arguments, **options):
            nonlocal calls
            calls += 1
            return await given(*arguments, **options)

        router.choose_replicas = counted
        waits = asyncio.ensure_future(router._choose_replica_for_request(pending(0)))
        await asyncio.sleep(0.5)
        while_full, replica.running = calls, 0
        await asyncio.wait_for(waits, 10)
        return while_full

    # Pauses of 25 ms that double: at most seven in half a second. Without them there are thousands of calls.
    assert asyncio.run(go()) < 12


def test_a_replica_that_is_gone_is_forgotten_even_where_it_was_only_chosen():
    async def go():
        router = make()
        replicas = [Replica("a"), Replica("b")]
        router.update_replicas(replicas)
        chosen = await router._choose_replica_for_request(pending(0))  # and never sent
        assert len(router._policy.index) == len(NAMES)
        router.update_replicas([r for r in replicas if r is not chosen])
        assert len(router._policy.index) == 0
        other = await send(router, 1)
        assert other is not chosen
        # A message about a replica that is gone changes nothing.
        router.on_request_completed(chosen.replica_id, "0")
        router.on_request_routed(pending(2), chosen.replica_id, None)
        router.update_replicas([other])
        assert router._load[other.replica_id] == 1 and len(router._policy.index) == len(NAMES)

    asyncio.run(go())


def test_a_replica_that_has_died_is_not_chosen_again():
    async def go():
        router = make("round_robin")
        dead, alive = Replica("a"), Replica("b")
        router.update_replicas([dead, alive])
        await asyncio.sleep(0.05)
        router.replica_queue_len_cache.invalidate_key(dead.replica_id)
        dead.running = None
        return {(await send(router, i)).replica_id.unique_id for i in range(3)}

    assert asyncio.run(go()) == {"b"}


def test_the_config_file_s_address_is_not_taken_from_its_options():
    from lib.serving.fleet.deployment import build

    with pytest.raises(ValueError, match="port: set in http_options of the file, not in args"):
        build({"port": 8000})
