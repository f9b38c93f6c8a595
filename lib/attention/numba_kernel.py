"""Paged attention on the CPU: one compiled loop that walks the block table and reads K and V where they lie.

Introduced in chapter 7.

Online softmax (Milakov & Gimelshein 2018) keeps, for each query and head, the running maximum m, the running sum l of
exp(score - m) and the running sum acc of exp(score - m) * V, and rescales all three when m grows: a sequence is read once,
a tile of keys at a time, however long it is. Two such states of different tiles merge into one (flash-decoding, Dao et
al. 2023), so a sequence can be shared among threads.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic, overload

QUERY_TILE = 8  # queries that share one reading of K and V
_KEY_TILE = 32  # keys between two rescalings: their scores and K rows stay in the first two cache levels
_LOG2E = np.float32(math.log2(math.e))


def compiled(function=None, **options):
    """njit with the result kept on disk, or, where the package and the home are read-only, in memory only."""
    if function is None:
        return lambda f: compiled(f, **options)
    try:
        return njit(function, cache=True, **options)
    except RuntimeError:  # "no locator available": there is nowhere to keep it
        return njit(function, **options)


@intrinsic
def widen(typingctx, x):
    """float32 as it is; uint16 as the upper half of a float32, which is what bfloat16 is. LLVM vectorises both."""

    def generate(context, builder, signature, args):
        if signature.args[0] == types.float32:
            return args[0]
        bits = builder.shl(builder.zext(args[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(x), generate


def _write(out, at, values):
    raise NotImplementedError  # what `values` are written as depends on out's dtype: see below


@overload(_write)
def _write_as(out, at, values):
    """values, float32 [n], to out[at:at + n]: float32, or the nearest bfloat16 as uint16 bits, ties to even."""
    if out.dtype == types.float32:
        def write(out, at, values):
            for i in range(len(values)):
                out[at + i] = values[i]
    else:
        def write(out, at, values):
            bits = values.view(np.uint32)
            for i in range(len(values)):
                b = bits[i]
                out[at + i] = (b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return write


@compiled(fastmath=True, nogil=True)
def _exponentials(x, n, bits):
    """exp in place of x[:n] <= 0, to 2e-7 relative; libm's would cost more than the dot product that made the score.

    2 ** (i + f) = 2 ** i * p(f): i goes into the exponent's bits, p is a minimax polynomial on [0, 1).
    """
    powers = bits.view(np.float32)
    for t in range(n):
        y = max(x[t] * _LOG2E, np.float32(-126))
        i = math.floor(y)
        f = y - np.float32(i)
        bits[t] = (np.int32(i) + np.int32(127)) << np.int32(23)
        p = np.float32(1.8775767e-3)
        p = p * f + np.float32(8.9893397e-3)
        p = p * f + np.float32(5.5826318e-2)
        p = p * f + np.float32(2.4015361e-1)
        p = p * f + np.float32(6.9315308e-1)
        x[t] = p * f + np.float32(9.9999994e-1)
    for t in range(n):
        x[t] *= powers[t]


@compiled(nogil=True)
def plan(query_start_loc, seq_lens, longest):
    """Units of work: up to QUERY_TILE neighbouring queries of one sequence. Sequences with more than `longest` are left out.

    Returns units [U, 4] (row, first token in T, queries, keys that the last query sees) and their cumulative cost [U + 1].
    """
    count = 0
    for row in range(len(seq_lens)):
        queries = query_start_loc[row + 1] - query_start_loc[row]
        count += 0 if queries > longest else -(-queries // QUERY_TILE)
    units, costs = np.empty((count, 4), np.int64), np.zeros(count + 1, np.int64)
    u = 0
    for row in range(len(seq_lens)):
        start, end = np.int64(query_start_loc[row]), np.int64(query_start_loc[row + 1])
        if end - start > longest:
            continue
        for token in range(start, end, QUERY_TILE):
            stop = min(token + QUERY_TILE, end)
            keys = seq_lens[row] - (end - stop)
            units[u, 0], units[u, 1], units[u, 2], units[u, 3] = row, token, stop - token, keys
            costs[u + 1] = costs[u] + -(-keys // _KEY_TILE) * _tile_cost(stop - token)
            u += 1
    return units, costs


@compiled(nogil=True)
def _tile_cost(queries):
    """Time of one key tile, in arbitrary units: its bytes cost as much as some four queries' arithmetic."""
    return queries + 4


@compiled(nogil=True)
def _tiles_before(cost, start, queries, tiles):
    """How many of a unit's key tiles lie before `cost` in the step's queue, where the unit starts at cost `start`."""
    return max(0, min(tiles, -(-(cost - start) // _tile_cost(queries))))


@compiled(fastmath=True, nogil=True)
def _attend_piece(q, keys, values, table, block_size, unit, first, last, m, l, acc, scaled):
    """Attend a unit's queries to the key tiles first..last-1 of their sequence; leave the state in m, l, acc.

    q [T, Hq, D]; keys, values [slots, Hkv, D]; m, l [QUERY_TILE, Hq]; acc, scaled [QUERY_TILE, Hq, D].
    The unit's last query sees the first `seen` keys, the one before it one less: that is the whole causal mask.
    """
    row, token, queries, seen = unit[0], unit[1], unit[2], unit[3]
    heads, kv_heads, size = q.shape[1], keys.shape[1], q.shape[2]
    group = heads // kv_heads
    scale = np.float32(1.0 / math.sqrt(size))
    for i in range(queries):
        for h in range(heads):
            m[i, h], l[i, h] = np.float32(-1e30), np.float32(0)
            for d in range(size):
                acc[i, h, d] = np.float32(0)
                scaled[i, h, d] = widen(q[token + i, h, d]) * scale
    scores = np.empty((heads, _KEY_TILE), np.float32)
    bits, slots = np.empty(_KEY_TILE, np.int32), np.empty(_KEY_TILE, np.int64)
    for tile in range(first, last):
        start = tile * _KEY_TILE
        count = min(_KEY_TILE, seen - start)
        for t in range(count):
            position = start + t
            slots[t] = np.int64(table[row, position // block_size]) * block_size + position % block_size
        for i in range(queries):
            visible = min(count, seen - (queries - 1 - i) - start)
            if visible <= 0:
                continue
            for t in range(visible):  # tokens outside, heads inside: memory is read in the order it lies in
                slot = slots[t]
                for h in range(kv_heads):
                    for g in range(h * group, (h + 1) * group):  # the group's queries share what was loaded
                        score = np.float32(0)
                        for d in range(size):
                            score += scaled[i, g, d] * widen(keys[slot, h, d])
                        scores[g, t] = score
            for g in range(heads):
                top = m[i, g]
                for t in range(visible):
                    top = max(top, scores[g, t])
                for t in range(visible):
                    scores[g, t] -= top
                _exponentials(scores[g], visible, bits)
                total = np.float32(0)
                for t in range(visible):
                    total += scores[g, t]
                if top > m[i, g]:
                    shrink = np.float32(math.exp(m[i, g] - top))
                    m[i, g] = top
                    l[i, g] *= shrink
                    for d in range(size):
                        acc[i, g, d] *= shrink
                l[i, g] += total
            for t in range(visible):
                slot = slots[t]
                for h in range(kv_heads):
                    for g in range(h * group, (h + 1) * group):
                        p = scores[g, t]
                        for d in range(size):
                            acc[i, g, d] += p * widen(values[slot, h, d])


@compiled(fastmath=True, nogil=True)
def _finish(out, unit, l, acc):
    """acc / l, the softmax's weighted mean, to the rows of the unit's queries."""
    token, queries = unit[1], unit[2]
    for i in range(queries):
        for h in range(acc.shape[1]):
            inverse = np.float32(1) / l[i, h]
            for d in range(acc.shape[2]):
                acc[i, h, d] *= inverse
            _write(out[token + i, h], 0, acc[i, h])


@compiled(fastmath=True, nogil=True)
def _merge(unit, m, l, acc, m2, l2, acc2):
    """Add the second state to the first: both become relative to the larger maximum."""
    for i in range(unit[2]):
        for h in range(acc.shape[1]):
            top = max(m[i, h], m2[i, h])
            a, b = np.float32(math.exp(m[i, h] - top)), np.float32(math.exp(m2[i, h] - top))
            m[i, h], l[i, h] = top, l[i, h] * a + l2[i, h] * b
            for d in range(acc.shape[2]):
                acc[i, h, d] = acc[i, h, d] * a + acc2[i, h, d] * b


@compiled(nogil=True)
def _piece(share, shares, unit, units, costs):
    """The part of a unit's key tiles that is this share's: tiles first..last-1 of `tiles`."""
    low, high = costs[-1] * share // shares, costs[-1] * (share + 1) // shares
    queries, tiles = units[unit, 2], -(-units[unit, 3] // _KEY_TILE)
    first = _tiles_before(low, costs[unit], queries, tiles)
    return first, _tiles_before(high, costs[unit], queries, tiles), tiles


@compiled(nogil=True)
def _first_unit(share, shares, costs):
    """The unit in whose stretch of the queue the share's part begins."""
    low, unit = costs[-1] * share // shares, 0
    while unit + 2 < len(costs) and costs[unit + 1] <= low:
        unit += 1
    return unit


@compiled(nogil=True)
def _run_share(share, shares, q, keys, values, table, block_size, units, costs, out, m, l, acc, scaled):
    """One thread's part of the queue: whole units, and perhaps the end of one and the beginning of another.

    m, l, acc [shares, 2, ...] hold two states a share: 0 is of the unit that an earlier share began, 1 of any other. Whole
    units are written out.
    """
    unit = _first_unit(share, shares, costs)
    while unit < len(units) and costs[unit] < costs[-1] * (share + 1) // shares:
        first, last, tiles = _piece(share, shares, unit, units, costs)
        state = 0 if first > 0 else 1
        if last > first:
            _attend_piece(q, keys, values, table, block_size, units[unit], first, last,
                          m[share, state], l[share, state], acc[share, state], scaled[share])
            if first == 0 and last == tiles:
                _finish(out, units[unit], l[share, 1], acc[share, 1])
        unit += 1


@compiled(nogil=True)
def _join_shares(shares, units, costs, out, m, l, acc):
    """Merge the states of units that were cut, and write them out."""
    for share in range(1, shares):
        unit = _first_unit(share, shares, costs)
        if unit == len(units):
            break
        first, last, tiles = _piece(share, shares, unit, units, costs)
        if first == 0 or first == last:
            continue
        begun = share - 1
        while costs[-1] * begun // shares > costs[unit]:
            begun -= 1
        _merge(units[unit], m[begun, 1], l[begun, 1], acc[begun, 1], m[share, 0], l[share, 0], acc[share, 0])
        if last == tiles:
            _finish(out, units[unit], l[begun, 1], acc[begun, 1])


# Only the loop over shares is to run in parallel: looking for more of them would double the compile time.
_PRANGE_ONLY = dict.fromkeys(("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil", "fusion"), False)


@compiled(parallel=_PRANGE_ONLY | {"prange": True}, nogil=True)
def _run_shares(shares, q, keys, values, table, block_size, units, costs, out, m, l, acc, scaled):
    for share in prange(shares):
        _run_share(np.int64(share), shares, q, keys, values, table, block_size, units, costs, out, m, l, acc, scaled)


def attend(q, keys, values, table, block_size, units, costs, shares, out):
    """Paged attention of the units of `plan`.

    q, out [T, Hq, D]; keys, values [slots, Hkv, D], slot = block * block_size + offset; table [B, max_blocks].
    `shares`: equal parts that the work is cut into, one a thread. bfloat16 comes as uint16.
    """
    heads, size = q.shape[1], q.shape[2]
    states = np.empty((2, shares, 2, QUERY_TILE, heads), np.float32)
    acc = np.empty((shares, 2, QUERY_TILE, heads, size), np.float32)
    scaled = np.empty((shares, QUERY_TILE, heads, size), np.float32)
    m, l = states[0], states[1]
    if shares > 1:
        _run_shares(shares, q, keys, values, table, block_size, units, costs, out, m, l, acc, scaled)
        _join_shares(shares, units, costs, out, m, l, acc)
    else:
        _run_share(0, 1, q, keys, values, table, block_size, units, costs, out, m, l, acc, scaled)
