"""The compiled functions that the fused layers call: with products for few rows, without them for any number of rows.

bfloat16 comes as uint16; all arithmetic is in float32. An empty array stands for a bias that is not there.
Introduced in chapter 8.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from lib.core import bfloat16, vector_code
from lib.core.bfloat16 import narrow, widen
from lib.core.numba_cache import NAN_SAFE, PRANGE, compiled
from lib.models.fused import row_functions, tile_product
from lib.models.fused.row_functions import add, gelu, norm, split_rotate_row
from lib.models.fused.row_functions import swiglu as swiglu_row
from lib.models.fused.tile_product import TILE, multiply_tiles

_OPTIONS = {"fastmath": NAN_SAFE, "inlined": (bfloat16, row_functions, tile_product, vector_code)}


@compiled(**_OPTIONS)
def _room(w, rows, outputs):
    """Memory for `rows` rows of inputs of w (zeros) or of outputs (not initialised), filled up to whole tiles."""
    if outputs:
        return np.empty((rows, len(w) * TILE), np.float32)
    return np.zeros((rows, w.size // (len(w) * TILE)), np.float32)


@compiled(**_OPTIONS)
def _widened(x, w):
    """x [T, K] as float32, with zeros up to the number of inputs of w."""
    inputs = _room(w, x.shape[0], False)
    for t in range(x.shape[0]):
        for i in range(x.shape[1]):
            inputs[t, i] = widen(x[t, i])
    return inputs


@compiled(**_OPTIONS)
def _multiply(x, w, threads):
    """x [T, K] W^T, filled up to whole tiles."""
    out = _room(w, x.shape[0], True)
    multiply_tiles(w, w.ctypes.data, x, out, threads)
    return out


# Few rows: products included


@compiled(**_OPTIONS)
def few_rows_product(x, w, bias, out, threads):
    """out [T, N] = x [T, K] W^T + bias."""
    sums = _multiply(_widened(x, w), w, threads)
    for t in range(x.shape[0]):
        for i in range(len(bias)):
            sums[t, i] += bias[i]
        for i in range(out.shape[1]):
            out[t, i] = narrow(sums[t, i], out[t, i])


@compiled(**_OPTIONS)
def few_rows_qkv(x, norm_weight, norm_bias, eps, w, bias, cos, sin, q, k, v, threads):
    """Norm of x [T, d], product to q [T, Hq, D] and k, v [T, Hkv, D], rotation by cos, sin [T, D / 2]."""
    inputs = _widened(x, w)
    for t in range(x.shape[0]):
        row = inputs[t, : x.shape[1]]
        norm(row, norm_weight, norm_bias, eps, row)
    sums = _multiply(inputs, w, threads)
    for t in range(x.shape[0]):
        for i in range(len(bias)):
            sums[t, i] += bias[i]
        split_rotate_row(sums[t], cos[t], sin[t], q[t], k[t], v[t])


@compiled(**_OPTIONS)
def few_rows_after_attention(
    y, x, proj, proj_bias, norm_weight, norm_bias, eps, wide, wide_bias, down, down_bias, width,
    gated, out, threads,
):  # fmt: skip
    """The rest of a layer: x = x + proj(y); out = x + down(act(wide(norm(x)))).

    y [T, Hq D], x and out [T, d]. `gated`: wide is gate and up, 2 * width outputs, and act is
    silu(gate) * up; otherwise act is GELU on `width` outputs.
    """
    rows, d = x.shape
    stream = np.empty((rows, d), np.float32)
    sums, normed = _multiply(_widened(y, proj), proj, threads), _room(wide, rows, False)
    for t in range(rows):
        for i in range(d):
            stream[t, i] = widen(x[t, i])
        add(stream[t], sums[t], proj_bias, stream[t])
        norm(stream[t], norm_weight, norm_bias, eps, normed[t])
    hidden, acted = _multiply(normed, wide, threads), _room(down, rows, False)
    for t in range(rows):
        for i in range(len(wide_bias)):
            hidden[t, i] += wide_bias[i]
        if gated:
            swiglu_row(hidden[t], acted[t, :width])
        else:
            gelu(hidden[t], acted[t, :width])
    result = _multiply(acted, down, threads)
    for t in range(rows):
        add(stream[t], result[t], down_bias, stream[t])
        for i in range(d):
            out[t, i] = narrow(stream[t, i], out[t, i])


# Any number of rows: what lies between the products. Threads divide the rows. With one thread there is no parallel
# loop, since an empty one would wake the other threads all the same.


@compiled(**_OPTIONS)
def _rms_norm_rows(x, weight, eps, out, first, last):
    wide, none = np.empty(x.shape[1], np.float32), np.empty(0, np.float32)
    for t in range(first, last):
        for i in range(len(wide)):
            wide[i] = widen(x[t, i])
        norm(wide, weight, none, eps, wide)
        for i in range(len(wide)):
            out[t, i] = narrow(wide[i], out[t, i])


@compiled(parallel=PRANGE, **_OPTIONS)
def rms_norm(x, weight, eps, out, threads):
    """Norm of each row of x [T, d]."""
    rows = x.shape[0]
    if threads == 1:
        _rms_norm_rows(x, weight, eps, out, 0, rows)
    else:
        for share in prange(threads):
            first, last = rows * share // threads, rows * (share + 1) // threads
            _rms_norm_rows(x, weight, eps, out, first, last)


@compiled(**_OPTIONS)
def _add_norm_rows(x, y, weight, bias, eps, total, out, first, last):
    wide = np.empty(x.shape[1], np.float32)
    for t in range(first, last):
        for i in range(len(wide)):
            total[t, i] = narrow(widen(x[t, i]) + widen(y[t, i]), total[t, i])
            wide[i] = widen(total[t, i])
        norm(wide, weight, bias, eps, wide)
        for i in range(len(wide)):
            out[t, i] = narrow(wide[i], out[t, i])


@compiled(parallel=PRANGE, **_OPTIONS)
def add_norm(x, y, weight, bias, eps, total, out, threads):
    """total = x + y, out = the norm of it: all [T, d]. LayerNorm where there is a bias, else RMSNorm."""
    rows = x.shape[0]
    if threads == 1:
        _add_norm_rows(x, y, weight, bias, eps, total, out, 0, rows)
    else:
        for share in prange(threads):
            first, last = rows * share // threads, rows * (share + 1) // threads
            _add_norm_rows(x, y, weight, bias, eps, total, out, first, last)


@compiled(**_OPTIONS)
def _split_rotate_rows(qkv, cos, sin, q, k, v, first, last):
    for t in range(first, last):
        split_rotate_row(qkv[t], cos[t], sin[t], q[t], k[t], v[t])


@compiled(parallel=PRANGE, **_OPTIONS)
def split_rotate(qkv, cos, sin, q, k, v, threads):
    """qkv [T, (Hq + 2 Hkv) D] to rotated q [T, Hq, D] and k [T, Hkv, D], and v [T, Hkv, D]."""
    rows = qkv.shape[0]
    if threads == 1:
        _split_rotate_rows(qkv, cos, sin, q, k, v, 0, rows)
    else:
        for share in prange(threads):
            first, last = rows * share // threads, rows * (share + 1) // threads
            _split_rotate_rows(qkv, cos, sin, q, k, v, first, last)


@compiled(**_OPTIONS)
def _swiglu_rows(gate_up, out, first, last):
    for t in range(first, last):
        swiglu_row(gate_up[t], out[t])


@compiled(parallel=PRANGE, **_OPTIONS)
def swiglu(gate_up, out, threads):
    """out [T, n] = silu(gate) * up, where gate_up [T, 2 n] has gate before up."""
    rows = gate_up.shape[0]
    if threads == 1:
        _swiglu_rows(gate_up, out, 0, rows)
    else:
        for share in prange(threads):
            first, last = rows * share // threads, rows * (share + 1) // threads
            _swiglu_rows(gate_up, out, first, last)
