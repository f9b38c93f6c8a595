"""Rounds K and V to 8 bits and writes them to their slots on a CPU, in one compiled call.

The results are those of `lib.cache.int8_kv_cache.round_heads`, bit for bit. Each layer stores in
each step, and the time of the PyTorch calls in `round_heads` hardly shrinks with the batch.
Introduced in chapter 11.
"""

from __future__ import annotations

import numpy as np

from lib.cache.int8_kv_cache import LARGEST
from lib.core import bfloat16
from lib.core.bfloat16 import widen
from lib.core.numba_cache import compiled

_INVERSE = np.float32(1 / LARGEST)
_TINY = np.finfo(np.float32).tiny
_MAGNITUDE, _INFINITY = np.int32(0x7FFFFFFF), np.int32(0x7F800000)  # masks of a float32's bits
# A float32 near 1.5 * 2 ** 23 has no bits for fractions: adding it rounds to the nearest integer,
# ties to even.
_ROUND, _ROUND_BITS = np.float32(1.5 * 2**23), np.int32(0x4B400000)
_EXACT = {"inlined": (bfloat16,), "fastmath": False}  # a reordered sum would not round


@compiled(**_EXACT)
def _store_rows(x, slots, codes, scales):
    heads, size = x.shape[1], x.shape[2]
    row, scale_of = np.empty(size, np.float32), np.empty(1, np.float32)
    bits, scale_bits = row.view(np.int32), scale_of.view(np.int32)
    for t in range(x.shape[0]):
        for h in range(heads):
            for d in range(size):
                row[d] = widen(x[t, h, d])
            peak = np.int32(0)
            for d in range(size):  # magnitudes as integers keep their order; NaN is the largest
                peak = max(peak, bits[d] & _MAGNITUDE)
            scale_bits[0] = peak
            scale = scale_of[0] * _INVERSE
            scales[slots[t], h] = scale
            usable = scale >= _TINY and peak < _INFINITY
            inverse = np.float32(1) / scale if usable else np.float32(0)
            for d in range(size if usable else 0):
                row[d] = row[d] * inverse + _ROUND
            for d in range(size):
                codes[slots[t], h, d] = bits[d] - _ROUND_BITS if usable else np.int32(0)


@compiled(**_EXACT)
def store(k, v, slots, keys, values, key_scales, value_scales):
    """k, v [T, Hkv, D], float32 or bfloat16's bits as uint16, to slots [T].

    keys, values: int8 [slots, Hkv, D]. key_scales, value_scales: float32 [slots, Hkv].
    """
    _store_rows(k, slots, keys, key_scales)
    _store_rows(v, slots, values, value_scales)
