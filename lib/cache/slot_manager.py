"""The contiguous cache's bookkeeping: one slot of max_model_len tokens per sequence. Introduced in chapter 2."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from lib.core.request import Request


class SlotManager:
    """Hands out whole slots. A slot is a block as long as the longest sequence allowed, so a sequence needs just one.

    The lowest free slot goes first: the occupied ones stay together, and decoding can read them as one view.
    """

    retains = True
    cached_block_ids, num_cached_blocks = (), 0  # chapter 9
    num_queries = num_hits = num_evictions = 0

    def __init__(self, num_slots: int, max_model_len: int) -> None:
        self.block_size = self.max_sequence_tokens = max_model_len
        self.num_blocks = num_slots
        self.reset()

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    def allocate(self, request: Request, num_tokens: int) -> bool:
        """Make room for `num_tokens` tokens: a slot, unless the request has one."""
        if num_tokens > self.block_size:
            raise ValueError(
                f"num_tokens must be at most {self.block_size}, the length of a slot, "
                f"got {num_tokens}"
            )
        if not request.block_ids:
            if not self._free:
                return False
            request.block_ids = [heapq.heappop(self._free)]
        return True

    def admit(self, request: Request) -> int | None:
        return 0 if self.allocate(request, request.num_tokens) else None

    def is_computing_prefix_of(self, request: Request) -> bool:
        return False

    def publish(self, request: Request) -> None:
        """A slot is of use to its own request only."""

    def forget_cached(self) -> None:
        """Free slots have no content that could be found."""

    def trim(self, request: Request, num_tokens: int) -> None:
        """A slot is given back whole."""

    def free(self, request: Request) -> None:
        for slot in request.block_ids:
            heapq.heappush(self._free, slot)
        request.block_ids = []

    def reset(self) -> None:
        """Everything is free, as in the beginning. The caller empties the requests' block tables."""
        self._free = list(range(self.num_blocks))

    def check_integrity(self, requests: Iterable[Request]) -> None:
        """Raise RuntimeError unless every slot is either free or held by exactly one of `requests`."""
        held = [slot for request in requests for slot in request.block_ids]
        if sorted([*held, *self._free]) != list(range(self.num_blocks)):
            raise RuntimeError(
                f"slots held {sorted(held)} and free {sorted(self._free)} are not the "
                f"{self.num_blocks} there are"
            )
