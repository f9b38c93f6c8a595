"""Paged attention on the CPU: compiled loops that walk the block table and read K and V where they lie.

Online softmax (Milakov & Gimelshein 2018) keeps, for a query and a head, the running maximum `peak`, the running sum `norm`
of exp(score - peak) and the running sum `acc` of exp(score - peak) * V, and rescales the sums when the peak grows: a
sequence is read once, a tile of keys at a time, and no score outlives its tile. Two such states of different tiles merge
into one (flash-decoding, Dao et al. 2023), so threads can share a sequence.

Introduced in chapter 7.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from lib.attention import row_code
from lib.attention.row_code import LANES, ROWS, SCORES, add_rows, dot_rows, prefetch, softmax_scores
from lib.core import bfloat16, vector_code
from lib.core.bfloat16 import narrow, widen
from lib.core.numba_cache import PRANGE, compiled

QUERY_TILE = 8  # queries of a sequence that share one reading of its K and V
# Keys between two rescalings: their K rows and scores stay in the first two cache levels.
KEY_TILE = SCORES
NO_WINDOW = 2**31  # longer than any sequence
# A piece of work; see lib.attention.work_partition.
ROW, TOKEN, QUERIES, SEEN, FIRST, LAST, TILES, STATE, BEGIN = range(9)
# A change of these files compiles the functions here again.
_INLINED = (bfloat16, row_code, vector_code)


@compiled(inlined=_INLINED)
def find_slots(slots, table_row, block_size, start, last):
    """slots[t] = slot of position min(start + t, last), for one tile of keys or more."""
    position = min(start, last)
    block, offset = position // block_size, position % block_size
    for t in range(len(slots)):
        slots[t] = np.int64(table_row[block]) * block_size + offset
        if position < last:
            position += 1
            offset += 1
            if offset == block_size:
                block, offset = block + 1, 0


@compiled(inlined=_INLINED)
def _attend_piece(q, keys, values, table, block_size, window, piece, peak, norm, acc, scaled):
    """Attend the piece's queries to its key tiles; leave the state in peak, norm [QUERY_TILE, Hq]
    and acc [.., D].

    The last query sees the first `seen` keys of the sequence, the one before it one less: that is
    the whole causal mask, and slots beyond are never read. Of these each query sees the last
    `window` ones. Tile 0 begins at position BEGIN.
    """
    row, token, queries, seen = piece[ROW], piece[TOKEN], piece[QUERIES], piece[SEEN]
    heads, kv_heads, size = q.shape[1], keys.shape[1], q.shape[2]
    group = heads // kv_heads
    scale = np.float32(1.0 / math.sqrt(size))
    for i in range(queries):
        for g in range(heads):
            peak[i, g], norm[i, g] = np.float32(-1e30), np.float32(0)
            for d in range(size):
                acc[i, g, d] = np.float32(0)
                scaled[i, g, d] = widen(q[token + i, g, d]) * scale
    head_bytes, keys_at, values_at = size * keys.itemsize, keys.ctypes.data, values.ctypes.data
    chunks = size // LANES
    scores = np.empty((heads, KEY_TILE), np.float32)
    scores_at, scaled_at = scores.ctypes.data, scaled.ctypes.data
    slots = np.empty(2 * KEY_TILE, np.int64)  # of this tile and the next
    offsets = np.empty(2 * KEY_TILE, np.int64)  # of their first heads, in bytes
    for tile in range(piece[FIRST], piece[LAST]):
        start = piece[BEGIN] + tile * KEY_TILE
        # Beyond the end the last key again: to be read with seven others, and weigh 0.
        find_slots(slots, table[row], block_size, start, seen - 1)
        for t in range(2 * KEY_TILE):
            offsets[t] = slots[t] * kv_heads * head_bytes
        for i in range(queries):
            end = seen - (queries - 1 - i) - start
            count = min(KEY_TILE, end)  # of this tile's keys, i sees those from `hidden` on
            hidden = max(0, end - window)
            if hidden >= count:
                count = 0
            # Tokens outside, heads inside: memory is read in the order it lies in.
            for t in range(0, count, ROWS):
                offsets_at = np.int64(offsets.ctypes.data + 8 * t)
                for h in range(kv_heads):
                    # These keys' values are next: blocks lie too far apart for the CPU to guess.
                    for u in range(t, t + ROWS if i == 0 else t):
                        prefetch(values_at + offsets[u] + h * head_bytes, head_bytes)
                    # The group's queries share what was loaded.
                    for g in range(h * group, (h + 1) * group):
                        x_at = np.int64(scaled_at + 4 * (i * heads + g) * size)
                        to = np.int64(scores_at + 4 * (g * KEY_TILE + t))
                        dot_rows(
                            keys, x_at, np.int64(keys_at + h * head_bytes), offsets_at, chunks, to
                        )
                        for d in range(chunks * LANES, size):
                            for u in range(t, t + ROWS):
                                scores[g, u] += scaled[i, g, d] * widen(keys[slots[u], h, d])
            for g in range(heads if count > 0 else 0):
                scores_of = np.int64(scores_at + 4 * g * KEY_TILE)
                top, total = softmax_scores(scores_of, hidden, count, peak[i, g])
                if top > peak[i, g]:
                    shrink = np.float32(math.exp(peak[i, g] - top))
                    peak[i, g] = top
                    norm[i, g] *= shrink
                    for d in range(size):
                        acc[i, g, d] *= shrink
                norm[i, g] += total
            for t in range(0, count, ROWS):
                offsets_at = np.int64(offsets.ctypes.data + 8 * t)
                for h in range(kv_heads):
                    # And then come the next tile's keys.
                    for u in range(KEY_TILE + t, KEY_TILE + t + ROWS if i == 0 else t):
                        prefetch(keys_at + offsets[u] + h * head_bytes, head_bytes)
                    for g in range(h * group, (h + 1) * group):
                        weights_at = np.int64(scores_at + 4 * (g * KEY_TILE + t))
                        to = np.int64(acc.ctypes.data + 4 * (i * heads + g) * size)
                        add_rows(
                            values, weights_at, np.int64(values_at + h * head_bytes), offsets_at,
                            chunks, to,
                        )  # fmt: skip
                        for d in range(chunks * LANES, size):
                            for u in range(t, t + ROWS):
                                acc[i, g, d] += scores[g, u] * widen(values[slots[u], h, d])


@compiled(inlined=_INLINED)
def finish(out, piece, norm, acc):
    """acc / norm, the weighted mean of V, to the rows of the piece's queries."""
    for i in range(piece[QUERIES]):
        for g in range(acc.shape[1]):
            inverse = np.float32(1) / norm[i, g]
            for d in range(acc.shape[2]):
                at = piece[TOKEN] + i, g, d
                out[at] = narrow(acc[i, g, d] * inverse, out[at])


@compiled(inlined=_INLINED)
def _merge(queries, peak, norm, acc, peak2, norm2, acc2):
    """Add the second state to the first: both become relative to the larger peak."""
    for i in range(queries):
        for g in range(acc.shape[1]):
            top = max(peak[i, g], peak2[i, g])
            a = np.float32(math.exp(peak[i, g] - top))
            b = np.float32(math.exp(peak2[i, g] - top))
            peak[i, g], norm[i, g] = top, norm[i, g] * a + norm2[i, g] * b
            for d in range(acc.shape[2]):
                acc[i, g, d] = acc[i, g, d] * a + acc2[i, g, d] * b


@compiled(inlined=_INLINED)
def merge_cuts(pieces, cuts, out, peak, norm, acc):
    """Merge the states of each sequence that is cut, and finish its rows of out."""
    begun = 0
    for p in cuts:  # in order: the state of a sequence's first piece takes in the others
        state = pieces[p, STATE]
        if pieces[p, FIRST] == 0:
            begun = state
        else:
            _merge(
                pieces[p, QUERIES],
                peak[begun],
                norm[begun],
                acc[begun],
                peak[state],
                norm[state],
                acc[state],
            )
            if pieces[p, LAST] == pieces[p, TILES]:
                finish(out, pieces[p], norm[begun], acc[begun])


@compiled(inlined=_INLINED)
def _attend_share(
    q, keys, values, table, block_size, window, pieces, out, peak, norm, acc, scaled
):  # fmt: skip
    """Attends the pieces of one thread, and finishes those that are not cut."""
    for p in range(len(pieces)):
        piece = pieces[p]
        state = piece[STATE]
        _attend_piece(
            q, keys, values, table, block_size, window, piece, peak[state], norm[state], acc[state],
            scaled,
        )  # fmt: skip
        if piece[FIRST] == 0 and piece[LAST] == piece[TILES]:
            finish(out, piece, norm[state], acc[state])


@compiled(parallel=PRANGE, inlined=_INLINED)
def attend(
    q,
    keys,
    values,
    table,
    block_size,
    window,
    pieces,
    offsets,
    cuts,
    out,
    peak,
    norm,
    acc,
    scaled,
):
    """Paged attention of q [T, Hq, D] to keys, values [slots, Hkv, D] as
    `lib.attention.work_partition.WorkPartition` divides it.

    Slots of table [B, max_blocks]: block * block_size + offset. window: keys that a query sees, its
    own included, or NO_WINDOW. pieces [P, 9]; offsets
    [shares + 1]; cuts [C] the pieces that need merging. out [T, Hq, D]. Scratch: peak, norm
    [C + shares, QUERY_TILE, Hq], acc [.., D], scaled [shares, QUERY_TILE, Hq, D]. bfloat16
    (q, keys, values, out) comes as uint16.
    """
    if len(offsets) == 2:  # an empty parallel loop would wake the other threads all the same
        _attend_share(
            q, keys, values, table, block_size, window, pieces, out, peak, norm, acc, scaled[0]
        )
    else:
        for share in prange(len(offsets) - 1):
            own = pieces[offsets[share] : offsets[share + 1]]
            _attend_share(
                q, keys, values, table, block_size, window, own, out, peak, norm, acc, scaled[share]
            )
    merge_cuts(pieces, cuts, out, peak, norm, acc)
