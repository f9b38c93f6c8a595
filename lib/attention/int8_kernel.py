"""Paged attention on the CPU with K and V in 8 bits, read in place.

The algorithm is that of `lib.attention.numba_kernel`: tiles of keys, an online softmax, states that
merge. Scales are applied per token, not per element: q . k = scale * (q . codes), and the scale of
a value multiplies the softmax weight. Introduced in chapter 11.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from lib.attention import int8_vectors, numba_kernel, row_code
from lib.attention.int8_vectors import LANES, add_values, dot
from lib.attention.numba_kernel import (
    BEGIN,
    FIRST,
    KEY_TILE,
    LAST,
    QUERIES,
    ROW,
    SEEN,
    STATE,
    TILES,
    TOKEN,
    find_slots,
    finish,
    merge_cuts,
)
from lib.attention.row_code import prefetch, softmax_scores
from lib.core import bfloat16, vector_code
from lib.core.bfloat16 import widen
from lib.core.numba_cache import PRANGE, compiled

# A change of these files compiles the functions here again.
_INLINED = (bfloat16, numba_kernel, int8_vectors, row_code, vector_code)


@compiled(inlined=_INLINED)
def _attend_piece(
    q,
    keys,
    values,
    key_scales,
    value_scales,
    table,
    block_size,
    window,
    piece,
    peak,
    norm,
    acc,
    scaled,
):
    """`numba_kernel._attend_piece` for codes.

    keys, values: int8 [slots, Hkv, D]. key_scales, value_scales: float32 [slots, Hkv].
    """
    row, token, queries, seen = piece[ROW], piece[TOKEN], piece[QUERIES], piece[SEEN]
    heads, kv_heads, size = q.shape[1], keys.shape[1], q.shape[2]
    group, chunks = heads // kv_heads, size // LANES
    whole = chunks * LANES
    scale = np.float32(1.0 / math.sqrt(size))
    for i in range(queries):
        for g in range(heads):
            peak[i, g], norm[i, g] = np.float32(-1e30), np.float32(0)
            for d in range(size):
                acc[i, g, d] = np.float32(0)
                scaled[i, g, d] = widen(q[token + i, g, d]) * scale
    row_bytes, keys_at, values_at = kv_heads * size, keys.ctypes.data, values.ctypes.data
    scores = np.empty((heads, KEY_TILE), np.float32)
    slots, next_slots = np.empty((2, KEY_TILE), np.int64)
    offsets = np.empty(KEY_TILE, np.int64)  # of this tile's rows, in bytes
    of_keys = np.empty((kv_heads, KEY_TILE), np.float32)  # scales of this tile
    of_values = np.empty((kv_heads, KEY_TILE), np.float32)
    find_slots(next_slots, table[row], block_size, piece[BEGIN] + piece[FIRST] * KEY_TILE, seen - 1)
    for tile in range(piece[FIRST], piece[LAST]):
        start = piece[BEGIN] + tile * KEY_TILE
        # Beyond the end, slots repeat the last key: keys are read in fours; those have no weight.
        slots, next_slots = next_slots, slots
        find_slots(next_slots, table[row], block_size, start + KEY_TILE, seen - 1)
        for t in range(KEY_TILE):
            offsets[t] = slots[t] * row_bytes
            prefetch(values_at + offsets[t], row_bytes)
            for h in range(kv_heads):
                of_keys[h, t] = key_scales[slots[t], h]
                of_values[h, t] = value_scales[slots[t], h]
        for i in range(queries):
            end = seen - (queries - 1 - i) - start
            count = min(KEY_TILE, end)  # query i sees keys hidden .. count - 1 of this tile
            hidden = max(0, end - window)
            if hidden >= count:
                continue
            for h in range(kv_heads):
                dot(
                    keys, h * size, offsets, count, group,
                    scaled, 4 * (i * heads + h * group) * size, 4 * size, chunks,
                    scores, 4 * h * group * KEY_TILE, 4 * KEY_TILE,
                )  # fmt: skip
            for t in range(KEY_TILE if i == 0 else 0):  # the next tile's keys
                prefetch(keys_at + next_slots[t] * row_bytes, row_bytes)
            for g in range(heads):
                h = g // group
                for t in range(count if whole < size else 0):
                    for d in range(whole, size):
                        scores[g, t] += scaled[i, g, d] * np.float32(keys[slots[t], h, d])
                for t in range(count):
                    scores[g, t] *= of_keys[h, t]
                scores_at = np.int64(scores.ctypes.data + 4 * g * KEY_TILE)
                top, total = softmax_scores(scores_at, hidden, count, peak[i, g])
                for t in range(count):
                    scores[g, t] *= of_values[h, t]
                if top > peak[i, g]:
                    shrink = np.float32(math.exp(peak[i, g] - top))
                    peak[i, g] = top
                    norm[i, g] *= shrink
                    for d in range(size):
                        acc[i, g, d] *= shrink
                norm[i, g] += total
                for t in range(count if whole < size else 0):
                    for d in range(whole, size):
                        acc[i, g, d] += scores[g, t] * np.float32(values[slots[t], h, d])
            for h in range(kv_heads):
                add_values(
                    values, h * size, offsets, count, group,
                    scores, 4 * h * group * KEY_TILE, 4 * KEY_TILE,
                    acc, 4 * (i * heads + h * group) * size, 4 * size, chunks,
                )  # fmt: skip


@compiled(inlined=_INLINED, parallel=PRANGE)
def attend(
    q, keys, values, key_scales, value_scales, table, block_size, window,
    pieces, offsets, cuts, out, peak, norm, acc, scaled,
):  # fmt: skip
    """`numba_kernel.attend` for codes.

    keys, values: int8 [slots, Hkv, D]. key_scales, value_scales: float32 [slots, Hkv].
    """
    for share in prange(len(offsets) - 1):
        for p in range(offsets[share], offsets[share + 1]):
            state = pieces[p, STATE]
            _attend_piece(
                q, keys, values, key_scales, value_scales, table, block_size, window,
                pieces[p], peak[state], norm[state], acc[state], scaled[share],
            )  # fmt: skip
            if pieces[p, FIRST] == 0 and pieces[p, LAST] == pieces[p, TILES]:
                finish(out, pieces[p], norm[state], acc[state])
    merge_cuts(pieces, cuts, out, peak, norm, acc)
