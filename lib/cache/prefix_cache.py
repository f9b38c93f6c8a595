"""Prefix caching: blocks whose K and V are kept and found again by their content. Introduced in chapter 9.

A full block is named by a chained hash of its tokens and of all tokens before it, as in vLLM V1: K and V
at a position depend on the whole prefix. Gim et al. 2024 (Prompt Cache) and Zheng et al. 2024 (SGLang's
RadixAttention) reuse prefixes in other ways.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from lib.cache.block_manager import NULL_BLOCK, BlockManager
from lib.core.request import Request


def block_hashes(request: Request, block_size: int, num_blocks: int) -> list[bytes]:
    """Names of the first `num_blocks` full blocks; each is computed once.

    The chain starts at a hash of the cache salt, so that equal prompts with
    different salts have different names. Whatever else changes K and V (e.g.
    an adapter) would belong there too.
    """
    hashes = request.block_hashes
    for i in range(len(hashes), num_blocks):
        salt = repr(request.cache_salt).encode()
        parent = hashes[-1] if hashes else hashlib.sha256(salt).digest()
        tokens = request.token_ids[i * block_size : (i + 1) * block_size]
        data = parent + array("q", tokens).tobytes()
        hashes.append(hashlib.sha256(data).digest())
    return hashes[:num_blocks]


@dataclass
class _Progress:
    """Leading blocks of an admitted request: published so far, and full when it was admitted."""

    published: int
    expected: int


class PrefixCachingBlockManager(BlockManager):
    """A BlockManager that keeps the content of blocks after their last reference is gone.

    A block is free (no content), used (referenced by at least one request) or cached (not
    referenced, content still valid): free + cached + used == num_blocks. Cached blocks are evicted
    least recently used first when the free ones run out; of one sequence, the last block first,
    since a block is only found through all blocks before it.

    A block is published under its name only after the step that computed it has succeeded. If two
    requests compute the same block in the same step, the second copy keeps no name and is free
    as soon as it is not referenced.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        super().__init__(num_blocks, block_size)
        self.num_queries = self.num_hits = 0  # prompt tokens looked up, and found
        self.num_evictions = 0

    @property
    def cached_block_ids(self) -> Collection[int]:
        """Cached blocks, least recently used first."""
        return self._cached.keys()

    @property
    def num_cached_blocks(self) -> int:
        return len(self._cached)

    @property
    def num_available_blocks(self) -> int:
        return len(self._free) + len(self._cached)

    def admit(self, request: Request) -> int | None:
        """Share the longest cached prefix and make room for the other known tokens.

        Returns the number of tokens found. They never include tokens whose
        logits are needed (`Request.max_cached_tokens`): these are computed
        again. None, and no change, if there is no room.
        """
        hits = self.find(request)
        idle = sum(self.ref_counts[block] == 0 for block in hits if block != NULL_BLOCK)
        missing = self.blocks_needed(request.num_tokens) - len(hits)
        if missing > self.num_available_blocks - idle:
            return None
        self.share(request, hits)
        self.allocate(request, request.num_tokens)
        full = request.num_tokens // self.block_size
        self._progress[request] = _Progress(len(hits), full)
        self._pending.update(self._unpublished(request))
        if request.num_cached_tokens is None:  # not again after a preemption
            request.num_cached_tokens = len(hits) * self.block_size
            self.num_queries += request.num_tokens
            self.num_hits += request.num_cached_tokens
        return len(hits) * self.block_size

    def is_computing_prefix_of(self, request: Request) -> bool:
        """Whether an admitted request will publish the next block it needs."""
        found, most = len(self.find(request)), self._most_hits(request)
        hashes = block_hashes(request, self.block_size, most)
        return found < len(hashes) and self._pending[hashes[found]] > 0

    def publish(self, request: Request) -> None:
        """Name the full blocks of computed tokens: others can find them now."""
        progress = self._progress[request]
        last = request.num_computed_tokens // self.block_size
        if last <= progress.published:
            return  # most decode steps
        hashes = block_hashes(request, self.block_size, last)
        for i in range(progress.published, last):
            if i < progress.expected:
                self._forget_pending(hashes[i])
            name, block = hashes[i], request.block_ids[i]
            if name not in self._block_of:  # else a twin was faster
                self._block_of[name], self._name_of[block] = block, name
        progress.published = last

    def share(self, request: Request, block_ids: list[int]) -> None:
        """Begin an empty block table with published blocks: one more reference each."""
        for block in block_ids:
            if block == NULL_BLOCK:
                continue
            if self.ref_counts[block] == 0:
                del self._cached[block]  # used again
            self.ref_counts[block] += 1
        request.block_ids = list(block_ids)

    def free(self, request: Request) -> None:
        """Drop the request's references. Published blocks without any stay in the pool, cached."""
        if request in self._progress:
            for name in self._unpublished(request):
                self._forget_pending(name)
            del self._progress[request]
        super().free(request)

    def forget_cached(self) -> None:
        """Forget the content of all cached blocks. Used blocks keep theirs. Not counted as evictions."""
        evictions = self.num_evictions
        while self._cached:
            self._evict()
        self.num_evictions = evictions

    def reset(self) -> None:
        """Everything is free and nothing is published, as in the beginning; the counts stay."""
        super().reset()
        self._block_of: dict[bytes, int] = {}  # published blocks, used or cached
        self._name_of: dict[int, bytes] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._progress: dict[Request, _Progress] = {}  # of admitted requests
        self._pending: Counter[bytes] = Counter()  # blocks that admitted requests will publish

    def check_integrity(self, requests: Iterable[Request] | None = None) -> None:
        """Raise RuntimeError if a block is lost or has two states, or if a name points to nothing.

        `requests`: those that hold blocks; the admitted ones if left out.
        """
        super().check_integrity(self._progress if requests is None else requests)
        used = {block for block, count in enumerate(self.ref_counts) if count}
        if self._name_of != {block: name for name, block in self._block_of.items()}:
            raise RuntimeError("names and blocks disagree")
        if not set(self._cached) <= set(self._name_of) <= set(self._cached) | used:
            raise RuntimeError("a cached block has no name, or a name points to a free block")
        expected = Counter(name for r in self._progress for name in self._unpublished(r))
        if self._pending != expected:
            raise RuntimeError("the names that will be published are not those of the requests")

    # Blocks.

    def _take(self) -> int:
        if not self._free:
            self._evict()
        return super()._take()

    def _give_back(self, block: int) -> None:
        if block in self._name_of:
            self._cached[block] = None  # the most recently used now
        else:
            super()._give_back(block)

    def _unused(self) -> Iterable[int]:
        return [*self._free, *self._cached]

    def _evict(self) -> None:
        block, _ = self._cached.popitem(last=False)
        del self._block_of[self._name_of.pop(block)]
        self._free.append(block)
        self.num_evictions += 1

    # Names.

    def _most_hits(self, request: Request) -> int:
        return request.max_cached_tokens // self.block_size

    def find(self, request: Request) -> list[int]:
        """Blocks of the longest published prefix of the request. Changes nothing."""
        found = []
        most = self._most_hits(request)
        for name in block_hashes(request, self.block_size, most):
            if (block := self._block_of.get(name)) is None:
                break
            found.append(block)
        return found

    def _unpublished(self, request: Request) -> list[bytes]:
        progress = self._progress[request]
        return block_hashes(request, self.block_size, progress.expected)[progress.published :]

    def _forget_pending(self, name: bytes) -> None:
        self._pending[name] -= 1
        if self._pending[name] <= 0:
            del self._pending[name]
