"""Interface between the scheduler and a cache's allocator. Introduced in chapter 1.

`NoCache` is the allocator of an engine that keeps nothing: chapter 1's. Chapter 2 brings one slot per sequence, chapter 4
blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from lib.core.request import Request


class CacheManager(Protocol):
    """Books room for tokens; the tensors themselves are KVCache's."""

    block_size: int  # tokens in a block
    num_blocks: int  # blocks that can be handed out
    max_sequence_tokens: int  # the longest sequence that fits into an otherwise empty cache
    retains: bool  # False: nothing is kept, so every step computes whole sequences

    @property
    def num_free_blocks(self) -> int: ...

    def allocate(self, request: Request, num_tokens: int) -> bool:
        """Make room for the request's first `num_tokens` tokens. False, and no change, if there is none."""

    def free(self, request: Request) -> None:
        """Give back all that the request holds; nothing happens if it holds nothing."""

    def reset(self) -> None:
        """Everything is free, as in the beginning. The caller empties the requests' block tables."""

    def check_integrity(self, requests: Iterable[Request]) -> None:
        """Raise RuntimeError, saying what is wrong, unless each block is free or held by `requests` as booked."""


class NoCache:
    """Room for nothing, which is always available."""

    block_size, num_blocks, num_free_blocks, retains = 1, 0, 0, False

    def __init__(self, max_sequence_tokens: int) -> None:
        self.max_sequence_tokens = max_sequence_tokens

    def allocate(self, request: Request, num_tokens: int) -> bool:
        return True

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
