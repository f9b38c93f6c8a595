"""Store a layer's K and V and attend, as a part of a larger compiled function: one overload per kind of cache.

Introduced in chapter 8.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from lib.attention.numba_kernel import NO_WINDOW, attend


class FloatCache(NamedTuple):
    """K and V of all layers by slot, float32 or the bits of bfloat16."""

    keys: np.ndarray  # [L, slots, Hkv, D]
    values: np.ndarray


class AttentionPlan(NamedTuple):
    """What attention needs to know of a step; the same for all layers."""

    slots: np.ndarray  # [T] int64, to which K and V are stored
    table: np.ndarray  # [B, max_blocks] int32
    block_size: int
    pieces: np.ndarray  # these three: see lib.attention.work_partition
    offsets: np.ndarray
    cuts: np.ndarray


class AttentionScratch(NamedTuple):
    """Memory for the states of `lib.attention.numba_kernel.attend`, whose names these are."""

    peak: np.ndarray
    norm: np.ndarray
    acc: np.ndarray
    scaled: np.ndarray


def store_and_attend(cache, layer, q, k, v, plan, scratch, out):
    """Store k, v [T, Hkv, D] in `layer` of the cache, then attend q [T, Hq, D] to it; only inside of compiled functions."""
    raise NotImplementedError("a compiled function calls this; see the overloads")


@overload(store_and_attend)
def _store_and_attend_floats(cache, layer, q, k, v, plan, scratch, out):
    if not (isinstance(cache, types.BaseNamedTuple) and cache.instance_class is FloatCache):
        return None

    def compute(cache, layer, q, k, v, plan, scratch, out):
        keys, values = cache.keys[layer], cache.values[layer]
        for t in range(len(k)):
            keys[plan.slots[t]] = k[t]
            values[plan.slots[t]] = v[t]
        attend(
            q, keys, values, plan.table, plan.block_size, NO_WINDOW, plan.pieces, plan.offsets,
            plan.cuts, out, scratch.peak, scratch.norm, scratch.acc, scratch.scaled,
        )  # fmt: skip

    return compute
