"""Paged caches of models in which every layer has a sliding window: blocks behind it are given back.

A block table keeps its length, so that the token at position p still has entry p // block_size. Entries behind the
window name the null block: no query reads them. Without prefix caching a long sequence holds as many blocks as a window
takes; with it, blocks that are given back stay in the pool, cached, until others need the room. Introduced in chapter 14.
"""

from __future__ import annotations

from lib.cache.block_manager import NULL_BLOCK, BlockManager
from lib.cache.prefix_cache import PrefixCachingBlockManager, block_hashes
from lib.core.request import Request


class SlidingWindowBlockManager(BlockManager):
    """A BlockManager whose requests hold no block that lies behind the window of all further queries.

    `window`: tokens that a query sees, its own included, in the layer that sees the most.
    """

    def __init__(self, num_blocks: int, block_size: int, window: int) -> None:
        self.window = window
        super().__init__(num_blocks, block_size)

    def publish(self, request: Request) -> None:
        """Computed tokens that the next query does not see give back their blocks."""
        super().publish(request)
        # The next query is at num_computed_tokens. Drafts that are rejected are not counted there,
        # so no later query begins before it.
        first = max(0, request.num_computed_tokens + 1 - self.window) // self.block_size
        table = request.block_ids
        if first == 0 or table[first - 1] == NULL_BLOCK:
            return  # most decode steps
        for block in reversed(table[:first]):
            if block != NULL_BLOCK:
                self._release(block, request)
        request.block_ids = [NULL_BLOCK] * first + table[first:]


class SlidingWindowPrefixCache(SlidingWindowBlockManager, PrefixCachingBlockManager):
    """The same with prefix caching. A prefix is found where the blocks of its last window are."""

    def find(self, request: Request) -> list[int]:
        """Blocks of the longest prefix whose last `window` - 1 tokens are cached.

        Earlier blocks are not needed, published or not: they are NULL_BLOCK. As in vLLM's
        SlidingWindowManager, the search goes backwards from the longest prefix.
        """
        needed = max(1, -(-(self.window - 1) // self.block_size))
        names = block_hashes(request, self.block_size, self._most_hits(request))
        found: list[int] = []  # a run of blocks that begins at i, last block first
        for i in reversed(range(len(names))):
            block = self._block_of.get(names[i])
            if block is None:
                found = []
                continue
            found.append(block)
            if len(found) == needed:
                return [NULL_BLOCK] * i + found[::-1]
        return found[::-1]
