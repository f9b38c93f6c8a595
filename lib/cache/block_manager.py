"""The paged cache's bookkeeping: small blocks that any sequence can own. Introduced in chapter 4.

Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with PagedAttention".
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from lib.core.request import Request

# Never handed out: padding reads and writes land there, and do no harm. In a block table it stands for a block that
# the request has given back (chapter 14).
NULL_BLOCK = 0


class BlockManager:
    """A pool of blocks: a free list, a reference count a block, and each request's block table.

    `num_blocks` counts the null block, as KVCache does; `num_blocks - 1` can be handed out.
    """

    retains = True
    cached_block_ids, num_cached_blocks = (), 0  # chapter 9
    num_queries = num_hits = num_evictions = 0
    window: int | None = None  # chapter 14

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 2:
            problem = f"must be >= 2 with the null block, got {num_blocks}"
            raise ValueError(f"num_blocks {problem}")
        self.block_size = block_size
        self.num_blocks = num_blocks - 1
        self.max_sequence_tokens = self.num_blocks * block_size
        self.reset()

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    @property
    def num_available_blocks(self) -> int:
        """Blocks that can be handed out now."""
        return len(self._free)

    def blocks_needed(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def allocate(self, request: Request, num_tokens: int) -> bool:
        """Extend the request's block table until it holds `num_tokens` tokens.

        False, and no change, if there are not enough blocks.
        """
        missing = self.blocks_needed(num_tokens) - len(request.block_ids)
        if missing > self.num_available_blocks:
            return False
        for _ in range(missing):
            block = self._take()
            self.ref_counts[block] = 1
            request.block_ids.append(block)
        return True

    def share(self, request: Request, block_ids: list[int]) -> None:
        """Begin an empty block table with blocks that others hold too: one more reference each."""
        if request.block_ids:
            raise ValueError(
                f"request {request.request_id} already holds blocks {request.block_ids}"
            )
        for block in block_ids:
            if self.ref_counts[block] == 0:
                raise ValueError(f"block {block} is free and cannot be shared")
            self.ref_counts[block] += 1
        request.block_ids = list(block_ids)

    def trim(self, request: Request, num_tokens: int) -> None:
        """Give back the blocks that the first `num_tokens` tokens do not need."""
        num_kept = self.blocks_needed(num_tokens)
        if len(request.block_ids) > num_kept:
            self._drop(request, num_kept)

    def free(self, request: Request) -> None:
        """Drop the request's references; blocks without references become free."""
        self._drop(request, 0)

    def admit(self, request: Request) -> int | None:
        """Make room for all tokens that the request has: 0 of them are in the cache. None if there is none."""
        return 0 if self.allocate(request, request.num_tokens) else None

    def publish(self, request: Request) -> None:
        """Computed tokens are of use to their own request only."""

    def is_computing_prefix_of(self, request: Request) -> bool:
        return False

    def forget_cached(self) -> None:
        """Free blocks have no content that could be found."""

    def reset(self) -> None:
        """Everything is free, as in the beginning.

        The caller empties the requests' block tables.
        """
        self.ref_counts = [0] * (self.num_blocks + 1)
        self._free = deque(range(1, self.num_blocks + 1))

    def check_integrity(self, requests: Iterable[Request]) -> None:
        """Raise RuntimeError unless every block is unused or referred to as often as `requests` hold it, and not both."""
        held = Counter(block for request in requests for block in request.block_ids)
        if self.window is not None:
            del held[NULL_BLOCK]
        free = Counter(self._unused())
        booked = {block: count for block, count in enumerate(self.ref_counts) if count}
        if held != booked:
            raise RuntimeError(f"blocks held {dict(held)} differ from the counts {booked}")
        if NULL_BLOCK in held or NULL_BLOCK in free:
            raise RuntimeError("the null block was handed out")
        if sorted([*held, *free.elements()]) != list(range(1, self.num_blocks + 1)):
            raise RuntimeError(
                f"{len(held)} blocks held and {free.total()} free are not the {self.num_blocks} there "
                f"are: held {sorted(held)}, free {sorted(free.elements())}"
            )

    def _drop(self, request: Request, num_kept: int) -> None:
        # Last block first: of shared prefixes, the least shareable are reused soonest.
        for block in reversed(request.block_ids[num_kept:]):
            if block != NULL_BLOCK:
                self._release(block, request)
        request.block_ids = request.block_ids[:num_kept]

    def _release(self, block: int, request: Request) -> None:
        """One reference less. Raises RuntimeError for a block without any."""
        if self.ref_counts[block] < 1:
            raise RuntimeError(f"block {block} of request {request.request_id} is freed twice")
        self.ref_counts[block] -= 1
        if self.ref_counts[block] == 0:
            self._give_back(block)

    def _take(self) -> int:
        return self._free.popleft()

    def _give_back(self, block: int) -> None:
        self._free.append(block)

    def _unused(self) -> Iterable[int]:
        """Blocks that no request refers to."""
        return self._free
