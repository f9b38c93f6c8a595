"""The reference for an int8 cache: attention without a cache, over K and V that were rounded as the cache rounds them.

Introduced in chapter 11.
"""

from __future__ import annotations

from torch import Tensor

from lib.attention.full import FullAttention
from lib.cache.int8_kv_cache import round_heads
from lib.core.batch import Batch


class RoundedKVAttention:
    """`FullAttention` to the numbers that an `Int8KVCache` would return for k and v."""

    def __init__(self) -> None:
        self._full = FullAttention()

    def __call__(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        batch: Batch,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        return self._full(layer, q, _rounded(k), _rounded(v), batch, window, softcap)


def _rounded(x: Tensor) -> Tensor:
    codes, scale = round_heads(x)
    return (codes * scale).to(x.dtype)
