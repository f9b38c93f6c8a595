"""Products with quantised weights on a CPU, for any number of rows; inputs as float32 or rounded to 8 bits.

A weight comes as a row of int64: the addresses of its arrays and its sizes (see the names below). So one compiled
function serves all kinds of weights, and a table of such rows is a whole model.
Introduced in chapter 11.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from lib.core import vector_code
from lib.core.numba_cache import NAN_SAFE, PRANGE, compiled
from lib.models.quantized import round_code, tile_code
from lib.models.quantized.round_code import round_block
from lib.models.quantized.tile_code import BLOCK, LANES, FloatTile, Int8Tile, tile_product

WORDS, SCALE, MINIMUM, HALF, BITS, TILES, GROUPS, PER_GROUP, COLUMN = range(9)  # of a weight's row
FIELDS = 9
INT8_ROWS, FLOAT_ROWS, FEW_ROWS = 16, 8, 4  # input rows per unpacking of the weights
_INLINED = (round_code, tile_code, vector_code)
_OPTIONS = {"fastmath": NAN_SAFE, "inlined": _INLINED}
_WORTH_THREADS = 2**15  # elements to round

_int8_tile = tile_product(Int8Tile, (INT8_ROWS, FEW_ROWS, 1))
_float_tile = tile_product(FloatTile, (FLOAT_ROWS, FEW_ROWS, 1))


@compiled(**_OPTIONS)
def _group_of(t, rows, many):
    """(first row, rows) of the group that row t is multiplied with: `many` rows, then FEW_ROWS, then single ones."""
    end = rows // many * many
    if t < end:
        return t // many * many, many
    few = end + (rows - end) // FEW_ROWS * FEW_ROWS
    if t < few:
        return end + (t - end) // FEW_ROWS * FEW_ROWS, FEW_ROWS
    return t, 1


@compiled(fastmath=False, inlined=_INLINED)
def _round_rows(x, first, last, codes, scales, sums, totals):
    """Rows first .. last - 1 of x [T, K] to int8, in blocks of 32 with the scale max|x| / 127.

    A group's rows are side by side: codes [T K / 32, 32], block b of row r at place
    (first row of the group) * K / 32 + b * (rows of the group) + (r - first row). scales, sums of
    the codes, and totals = scale * sum [T K / 32] have the same places.
    """
    rows, blocks = np.int64(x.shape[0]), np.int64(x.shape[1] // BLOCK)
    for t in range(first, last):
        start, size = _group_of(t, rows, INT8_ROWS)
        for block in range(blocks):
            place = start * blocks + block * size + (t - start)
            round_block(
                np.int64(x.ctypes.data + (t * blocks + block) * BLOCK * 4),
                np.int64(codes.ctypes.data + place * BLOCK),
                np.int64(scales.ctypes.data + place * 4),
                np.int64(sums.ctypes.data + place * 4),
                np.int64(totals.ctypes.data + place * 4),
            )


@compiled(parallel=PRANGE, **_OPTIONS)
def rounded(x, threads):
    """(codes, scales, sums, totals) of x [T, K], as `_round_rows` lays them out."""
    rows, places = x.shape[0], x.size // BLOCK
    codes = np.empty((places, BLOCK), np.int8)
    scales, totals = np.empty(places, np.float32), np.empty(places, np.float32)
    sums = np.empty(places, np.int32)
    if threads == 1 or x.size < _WORTH_THREADS:
        _round_rows(x, 0, rows, codes, scales, sums, totals)
    else:
        for share in prange(threads):
            first, last = rows * share // threads, rows * (share + 1) // threads
            _round_rows(x, first, last, codes, scales, sums, totals)
    return codes, scales, sums, totals


@compiled(**_OPTIONS)
def _block_sums(x):
    """The sums of x [T, K] over blocks of 32: [T K / 32]."""
    sums = np.empty(x.size // BLOCK, np.float32)
    blocks = x.shape[1] // BLOCK
    for t in range(x.shape[0]):
        for block in range(blocks):
            total = np.float32(0)
            for i in range(BLOCK):
                total += x[t, block * BLOCK + i]
            sums[t * blocks + block] = total
    return sums


@compiled(**_OPTIONS)
def _int8_share(weight, rows, codes, scales, sums, totals, out, share, shares):
    """Multiplies all rows with a thread's share of a weight's tiles, with as many rows per call as possible."""
    groups, per_group, ld = weight[GROUPS], weight[PER_GROUP], np.int64(out.shape[1])
    blocks = groups * per_group
    for tile in range(weight[TILES] * share // shares, weight[TILES] * (share + 1) // shares):
        t = 0
        while t < rows:
            x = codes.ctypes.data + t * blocks * BLOCK
            xs, xt = scales.ctypes.data + t * blocks * 4, totals.ctypes.data + t * blocks * 4
            xn = sums.ctypes.data + t * blocks * 4
            to = out.ctypes.data + (t * ld + weight[COLUMN] + tile * LANES) * 4
            size = _group_of(t, rows, INT8_ROWS)[1]
            _int8_tile(
                size, weight[BITS], weight[WORDS], weight[SCALE], weight[MINIMUM], weight[HALF],
                tile, groups, per_group, x, xs, xn, xt, to, ld,
            )  # fmt: skip
            t += size


@compiled(**_OPTIONS)
def _float_share(weight, rows, x, totals, out, share, shares):
    """As `_int8_share`, for float32 inputs; totals: `_block_sums`."""
    groups, per_group, ld = weight[GROUPS], weight[PER_GROUP], np.int64(out.shape[1])
    blocks, none = groups * per_group, np.int64(0)
    for tile in range(weight[TILES] * share // shares, weight[TILES] * (share + 1) // shares):
        t = 0
        while t < rows:
            at = x.ctypes.data + t * blocks * BLOCK * 4
            xt = totals.ctypes.data + t * blocks * 4
            to = out.ctypes.data + (t * ld + weight[COLUMN] + tile * LANES) * 4
            size = _group_of(t, rows, FLOAT_ROWS)[1]
            _float_tile(
                size, weight[BITS], weight[WORDS], weight[SCALE], weight[MINIMUM], weight[HALF],
                tile, groups, per_group, at, none, none, xt, to, ld,
            )  # fmt: skip
            t += size


@compiled(parallel=PRANGE, **_OPTIONS)
def multiply_int8(weights, x, out, threads):
    """out [T, N] = x [T, K] W^T, where each block of 32 elements of x is first rounded to 8 bits.

    weights [P, FIELDS]: W's parts, one below the other. x and out are float32, N and K padded to
    whole tiles and blocks; all parts but the last have whole tiles.
    """
    codes, scales, sums, totals = rounded(x, threads)
    if threads == 1:  # an empty parallel loop would wake the other threads all the same
        for p in range(len(weights)):
            _int8_share(weights[p], len(x), codes, scales, sums, totals, out, 0, 1)
    else:
        for share in prange(threads):
            for p in range(len(weights)):
                _int8_share(weights[p], len(x), codes, scales, sums, totals, out, share, threads)


@compiled(parallel=PRANGE, **_OPTIONS)
def multiply_float(weights, x, out, threads):
    """As `multiply_int8`, but x is not rounded: products and sums are in float32."""
    totals = _block_sums(x)
    if threads == 1:
        for p in range(len(weights)):
            _float_share(weights[p], len(x), x, totals, out, 0, 1)
    else:
        for share in prange(threads):
            for p in range(len(weights)):
                _float_share(weights[p], len(x), x, totals, out, share, threads)
