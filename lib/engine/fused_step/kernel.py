"""All layers of a step of few rows as one compiled function.

Between the products of one layer, and between two layers, nothing returns to Python: no call to dispatch, no tensor to
make, no argument to unpack. The parts are the ones that the layers' own kernels use.
Introduced in chapter 8.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from lib.attention import numba_kernel, row_code, step_kernel
from lib.attention.step_kernel import store_and_attend
from lib.core import bfloat16, vector_code
from lib.core.bfloat16 import widen
from lib.core.numba_cache import NAN_SAFE, PRANGE, compiled
from lib.models.fused import row_functions, tile_product
from lib.models.fused import weights as products_of
from lib.models.fused.row_functions import add, gelu, norm, split_rotate_row, swiglu
from lib.models.fused.weights import DOWN, PROJ, QKV, WIDE, multiply

# Files whose functions are compiled into those here.
INLINED = (
    numba_kernel, row_code, step_kernel, bfloat16, row_functions, tile_product, products_of, vector_code
)  # fmt: skip
_PART = {"fastmath": NAN_SAFE, "error_model": "numpy"}
_WORTH_THREADS = 2**15  # elements; waking a thread for half of fewer does not pay


class SmallWeights(NamedTuple):
    """Norms and biases of L layers, float32. No bias: 0 columns."""

    norms: np.ndarray  # [L, 2, d]
    norm_biases: np.ndarray  # [L, 2, d]
    qkv_bias: np.ndarray  # [L, (Hq + 2 Hkv) D]
    proj_bias: np.ndarray  # [L, d]
    wide_bias: np.ndarray  # [L, width], twice as many where gated
    down_bias: np.ndarray  # [L, d]
    eps: float
    width: int  # inputs of the last product
    gated: bool  # SwiGLU, else GELU


class Angles(NamedTuple):
    """Rotation of q and k; 0 columns: none."""

    cos: np.ndarray  # [positions, D / 2] float32
    sin: np.ndarray
    positions: np.ndarray  # [T] int64


@njit(**_PART)
def _norm_rows(x, sums, bias, weight, norm_bias, eps, out, first, last):
    for t in range(first, last):
        if sums.shape[1]:
            add(x[t], sums[t], bias, x[t])
        norm(x[t], weight, norm_bias, eps, out[t])


@njit(parallel=PRANGE, **_PART)
def _normed(x, sums, bias, weight, norm_bias, eps, inputs, threads):
    """Add sums + bias to x [T, d], if sums has columns; return the norms of x, with zeros up to `inputs` columns."""
    rows, out = x.shape[0], np.zeros((x.shape[0], inputs), np.float32)
    if threads == 1 or x.size < _WORTH_THREADS:
        _norm_rows(x, sums, bias, weight, norm_bias, eps, out, 0, rows)
    else:
        for share in prange(threads):
            first, last = rows * share // threads, rows * (share + 1) // threads
            _norm_rows(x, sums, bias, weight, norm_bias, eps, out, first, last)
    return out


@njit(**_PART)
def _split(sums, bias, angles, q, k, v):
    """sums [T, at least (Hq + 2 Hkv) D] to q, k, v, rotated."""
    for t in range(q.shape[0]):
        for i in range(len(bias)):
            sums[t, i] += bias[i]
        at = angles.positions[t]
        split_rotate_row(sums[t], angles.cos[at], angles.sin[at], q[t], k[t], v[t])


@njit(**_PART)
def _activate_rows(hidden, bias, width, gated, out, first, last):
    for t in range(first, last):
        for i in range(len(bias)):
            hidden[t, i] += bias[i]
        if gated:
            swiglu(hidden[t], out[t, :width])
        else:
            gelu(hidden[t], out[t, :width])


@njit(parallel=PRANGE, **_PART)
def _activated(hidden, bias, width, gated, inputs, threads):
    """act(hidden + bias) of `width` columns, with zeros up to `inputs` columns."""
    rows, out = hidden.shape[0], np.zeros((hidden.shape[0], inputs), np.float32)
    if threads == 1 or out.size < _WORTH_THREADS:
        _activate_rows(hidden, bias, width, gated, out, 0, rows)
    else:
        for share in prange(threads):
            first, last = rows * share // threads, rows * (share + 1) // threads
            _activate_rows(hidden, bias, width, gated, out, first, last)
    return out


@njit(**_PART)
def _widened(y, inputs):
    """y [T, Hq, D] as float32 [T, inputs], with zeros at the end."""
    rows, heads, size = y.shape
    out = np.zeros((rows, inputs), np.float32)
    for t in range(rows):
        for h in range(heads):
            for d in range(size):
                out[t, h * size + d] = widen(y[t, h, d])
    return out


@njit(**_PART)
def layers(x, weights, small, angles, cache, plan, scratch, q, k, v, y, threads):
    """See `run_layers`."""
    inputs, eps, num_layers = weights.inputs, small.eps, small.norms.shape[0]
    # What the last product added is added to x with the next norm, so that a row is read once.
    sums, bias = np.empty((0, 0), np.float32), small.down_bias[0]
    for layer in range(num_layers):
        weight, norm_bias = small.norms[layer], small.norm_biases[layer]
        normed = _normed(x, sums, bias, weight[0], norm_bias[0], eps, inputs[QKV], threads)
        products = multiply(weights, layer, QKV, normed, threads)
        _split(products, small.qkv_bias[layer], angles, q, k, v)
        store_and_attend(cache, layer, q, k, v, plan, scratch, y)
        sums = multiply(weights, layer, PROJ, _widened(y, inputs[PROJ]), threads)
        bias = small.proj_bias[layer]
        normed = _normed(x, sums, bias, weight[1], norm_bias[1], eps, inputs[WIDE], threads)
        hidden = multiply(weights, layer, WIDE, normed, threads)
        bias = small.wide_bias[layer]
        acted = _activated(hidden, bias, small.width, small.gated, inputs[DOWN], threads)
        sums, bias = multiply(weights, layer, DOWN, acted, threads), small.down_bias[layer]
    for t in range(x.shape[0]):
        add(x[t], sums[t], bias, x[t])


@compiled(fastmath=NAN_SAFE, inlined=INLINED)
def run_layers(x, weights, small, angles, cache, plan, scratch, q, k, v, y, threads):
    """Run x [T, d] float32, the embeddings, through all layers, in place; K and V go to the cache.

    weights: a table such as `lib.models.fused.weights.TileWeights`; small: SmallWeights; angles:
    Angles; cache, plan, scratch: see `lib.attention.step_kernel`. q, y [T, Hq, D] and k, v
    [T, Hkv, D]: memory, of the type that attention computes with.
    """
    layers(x, weights, small, angles, cache, plan, scratch, q, k, v, y, threads)
