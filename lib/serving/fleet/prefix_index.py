"""A router's index of what the replicas' prefix caches may hold. Introduced in chapter 13.

The index records what was sent to a replica, at the moment it was sent. A replica does not report what it computed or
evicted, so an entry can be wrong in two ways: the replica has not computed the block yet, or has evicted it already. Both
cost a cache miss and nothing else. Beyond `capacity` names per replica, the least recently used are removed, as the
replica evicts its blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Hashable, Sequence

ReplicaId = Hashable


class PrefixIndex:
    """Names of blocks by replica. A prompt is the list of its full blocks' names, each of which includes its prefix.

    capacity: names kept for each replica, e.g. the blocks of its cache. Raises ValueError below 1.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be >= 1, got {capacity}")
        self.capacity = capacity
        self._names: dict[ReplicaId, OrderedDict[Hashable, None]] = {}  # least recently used first
        self._holders: dict[Hashable, dict[ReplicaId, None]] = {}

    def __len__(self) -> int:
        """Names of all replicas together."""
        return sum(map(len, self._names.values()))

    def longest(
        self, names: Sequence[Hashable], among: Container[ReplicaId]
    ) -> tuple[int, list[ReplicaId]]:
        """(n, replicas): each of these replicas has the first n names.

        None of `among` has n + 1. (0, []) where none has the first one.
        """
        matched, holders = 0, []
        for count, name in enumerate(names, 1):
            having = self._holders.get(name, {})
            if holders:  # not all that have this name: a replica can have evicted the one before
                found = [r for r in holders if r in having]
            else:
                found = [r for r in having if r in among]
            if not found:
                break
            matched, holders = count, found
        return matched, holders

    def add(self, names: Sequence[Hashable], replica: ReplicaId) -> None:
        """A prompt was sent to a replica.

        Its last blocks are forgotten first, as in the engine's cache.
        """
        held = self._names.setdefault(replica, OrderedDict())
        for name in reversed(names):
            held[name] = None
            held.move_to_end(name)
            self._holders.setdefault(name, {})[replica] = None
        while len(held) > self.capacity:
            name, _ = held.popitem(last=False)
            self._drop(name, replica)

    def forget(self, replica: ReplicaId) -> None:
        """The replica has ended, and its cache with it."""
        for name in self._names.pop(replica, ()):
            self._drop(name, replica)

    def _drop(self, name: Hashable, replica: ReplicaId) -> None:
        holders = self._holders[name]
        del holders[replica]
        if not holders:
            del self._holders[name]
