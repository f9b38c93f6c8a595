"""Four policies that choose a replica for a request. Introduced in chapter 13.

They use no clock and no network: the Ray router, the fleet simulator and chapter 13's measurement use the same classes. The
state of each policy is a few counters, and for `LongestPrefix` a `PrefixIndex`. `load` is the number of requests at a
replica, running or waiting, as the caller knows it; it can be out of date.

Two random choices: Mitzenmacher 2001. Longest prefix with a limit on imbalance: SGLang's router.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol

from lib.serving.fleet.prefix_index import PrefixIndex, ReplicaId

POLICIES = ("round_robin", "least_loaded", "power_of_two", "longest_prefix")


class Router(Protocol):
    """Chooses one of `replicas` (the healthy ones, at least one) for a prompt.

    names: the names of the prompt's full blocks from the first on (`lib.cache.prefix_cache.block_hashes`). load: requests
    at each of these replicas, and at no other. `forget` is called when a replica has ended.
    """

    def choose(
        self,
        names: Sequence[Hashable],
        replicas: Sequence[ReplicaId],
        load: Mapping[ReplicaId, int],
    ) -> ReplicaId: ...

    def sent(self, names: Sequence[Hashable], replica: ReplicaId) -> None:
        """The request went to this replica; needed only where that is not the chosen one."""

    def forget(self, replica: ReplicaId) -> None: ...


class RoundRobin:
    """Each replica in turn."""

    def __init__(self) -> None:
        self._count = 0

    def choose(self, names, replicas, load):
        self._count += 1
        return replicas[(self._count - 1) % len(replicas)]

    def sent(self, names, replica):
        """Nothing is kept."""

    def forget(self, replica):
        """Nothing is kept."""


class LeastLoaded(RoundRobin):
    """The replica with the fewest requests, in turn among equals. Its cost grows with the number of replicas."""

    def choose(self, names, replicas, load):
        self._count += 1
        start = self._count % len(replicas)
        # min returns the first of equals.
        return min([*replicas[start:], *replicas[:start]], key=load.__getitem__)


class PowerOfTwo:
    """Two replicas at random, and of these the one with fewer requests. Its cost does not grow with their number."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = random.Random(f"router/{seed}")

    def choose(self, names, replicas, load):
        n = len(replicas)
        if n == 1:
            return replicas[0]
        i = int(self._rng.random() * n)
        j = int(self._rng.random() * (n - 1))
        first, second = replicas[i], replicas[j + (j >= i)]
        return first if load[first] <= load[second] else second

    def sent(self, names, replica):
        """Nothing is kept."""

    def forget(self, replica):
        """Nothing is kept."""


class LongestPrefix:
    """The least loaded of the replicas with the longest known prefix; `PowerOfTwo`'s choice where that is too short or busy.

    min_match: blocks that must match. max_imbalance: by how many requests the replica with the prefix may exceed the one
    that `PowerOfTwo` chooses; beyond it the request goes to the latter, which then has the prefix too.
    capacity: names kept for each replica. Raises ValueError for min_match or capacity below 1, max_imbalance below 0.
    """

    def __init__(
        self, min_match: int = 1, max_imbalance: int = 8, capacity: int = 100_000, seed: int = 0
    ) -> None:
        if min_match < 1:
            raise ValueError(f"min_match must be >= 1, got {min_match}")
        if max_imbalance < 0:
            raise ValueError(f"max_imbalance must be >= 0, got {max_imbalance}")
        self.index = PrefixIndex(capacity)
        self.min_match, self.max_imbalance = min_match, max_imbalance
        self._balance = PowerOfTwo(seed)

    def choose(self, names, replicas, load):
        chosen = self._balance.choose(names, replicas, load)
        matched, holders = self.index.longest(names, load)
        if matched >= self.min_match:
            nearest = min(holders, key=load.__getitem__)
            if load[nearest] <= load[chosen] + self.max_imbalance:
                chosen = nearest
        self.index.add(names, chosen)
        return chosen

    def sent(self, names, replica):
        """Adds the names to this replica's. They also stay with the chosen one, which may have some of them."""
        self.index.add(names, replica)

    def forget(self, replica):
        self.index.forget(replica)


def make_router(policy: str, seed: int = 0, **options: int) -> Router:
    """A policy by its name. options: those of `LongestPrefix`; ValueError for another policy with any, or an unknown one."""
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    if policy == "longest_prefix":
        return LongestPrefix(seed=seed, **options)
    if options:
        raise ValueError(f"{', '.join(options)}: only longest_prefix has them, got {policy!r}")
    return {"round_robin": RoundRobin, "least_loaded": LeastLoaded}.get(
        policy, lambda: PowerOfTwo(seed)
    )()
