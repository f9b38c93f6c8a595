"""Interface between the scheduler and a cache's allocator. Introduced in chapter 1.

`NoCache` is the allocator of an engine that keeps nothing: chapter 1's. Chapter 2 brings one slot per sequence, chapter 4
blocks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol

from lib.core.request import Request


class CacheManager(Protocol):
    """Books room for tokens; the tensors themselves are KVCache's."""

    block_size: int  # tokens in a block
    num_blocks: int  # blocks that can be handed out
    max_sequence_tokens: int  # the longest sequence that fits into an otherwise empty cache
    retains: bool  # False: nothing is kept, so every step computes whole sequences
    cached_block_ids: Collection[int]  # blocks without an owner whose content can be found again
    num_cached_blocks: int
    num_queries: int  # tokens looked up in the prefix cache at admission
    num_hits: int  # and found
    num_evictions: int  # cached blocks that were given to other content

    @property
    def num_free_blocks(self) -> int: ...

    def admit(self, request: Request) -> int | None:
        """Make room for all tokens of a request that holds nothing. Returns how many of them are in the
        cache already; None, and no change, if there is no room."""

    def is_computing_prefix_of(self, request: Request) -> bool:
        """Whether the cache will soon hold more of the request's tokens, which others compute now."""

    def publish(self, request: Request) -> None:
        """The request's first `num_computed_tokens` tokens are in the cache: a step has succeeded."""

    def allocate(self, request: Request, num_tokens: int) -> bool:
        """Make room for the request's first `num_tokens` tokens. False, and no change, if there is none."""

    def trim(self, request: Request, num_tokens: int) -> None:
        """Give back what the request holds beyond the room of its first `num_tokens` tokens."""

    def free(self, request: Request) -> None:
        """Give back all that the request holds; nothing happens if it holds nothing."""

    def forget_cached(self) -> None:
        """Forget the content of blocks that no request holds."""

    def reset(self) -> None:
        """Everything is free, as in the beginning. The caller empties the requests' block tables."""

    def check_integrity(self, requests: Iterable[Request]) -> None:
        """Raise RuntimeError, saying what is wrong, unless each block is free or held by `requests` as booked."""


class NoCache:
    """Room for nothing, which is always available."""

    block_size, num_blocks, num_free_blocks, retains = 1, 0, 0, False
    cached_block_ids, num_cached_blocks = (), 0
    num_queries = num_hits = num_evictions = 0

    def __init__(self, max_sequence_tokens: int) -> None:
        self.max_sequence_tokens = max_sequence_tokens

    def allocate(self, request: Request, num_tokens: int) -> bool:
        return True

    def admit(self, request: Request) -> int | None:
        return 0

    def is_computing_prefix_of(self, request: Request) -> bool:
        return False

    def publish(self, request: Request) -> None:
        pass

    def forget_cached(self) -> None:
        pass

    def trim(self, request: Request, num_tokens: int) -> None:
        pass

    def free(self, request: Request) -> None:
        pass

    def reset(self) -> None:
        pass

    def check_integrity(self, requests: Iterable[Request]) -> None:
        for request in requests:
            if request.block_ids:
                raise RuntimeError(
                    f"request {request.request_id} holds blocks {request.block_ids}, and there are none"
                )
