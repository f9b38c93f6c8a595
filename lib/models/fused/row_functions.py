"""What a layer computes between its products, for one row: norm, activation, residual addition, rotation.

An empty array stands for a bias that is not there. Introduced in chapter 8.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.extending import intrinsic

from lib.core import bfloat16, vector_code
from lib.core.bfloat16 import narrow, widen
from lib.core.numba_cache import NAN_SAFE, compiled
from lib.core.vector_code import F32, I32, POWERS_OF_TWO

_OPTIONS = {"fastmath": NAN_SAFE, "inlined": (bfloat16, vector_code)}
_P = tuple(np.float32(coefficient) for coefficient in POWERS_OF_TWO)
_LOG2E = np.float32(math.log2(math.e))
_GELU_SLOPE = np.float32(2 * math.sqrt(2 / math.pi))


@compiled(**_OPTIONS)
def norm(x, weight, bias, eps, out):
    """out[:len(x)] = RMSNorm of float32 x, or LayerNorm where there is a bias."""
    n = len(x)
    mean = np.float32(0)
    if len(bias):
        for i in range(n):
            mean += x[i]
        mean /= np.float32(n)
    square = np.float32(0)
    for i in range(n):
        square += (x[i] - mean) * (x[i] - mean)
    scale = np.float32(1) / np.float32(math.sqrt(square / np.float32(n) + np.float32(eps)))
    for i in range(n):
        out[i] = (x[i] - mean) * scale * weight[i]
    for i in range(len(bias)):
        out[i] += bias[i]


@compiled(**_OPTIONS)
def _sigmoid(x):
    """1 / (1 + exp(-x)), to 3e-7 relative; LLVM vectorises it, unlike a call of libm.

    exp(-x) = 2 ** (i + f) = 2 ** i * p(f): i becomes the exponent's bits, p is a minimax polynomial on [0, 1).
    """
    y = min(max(-x * _LOG2E, np.float32(-126)), np.float32(126))
    i = np.floor(y)
    f = y - i
    p = ((_P[0] * f + _P[1]) * f + _P[2]) * f + _P[3]
    p = (p * f + _P[4]) * f + _P[5]
    return np.float32(1) / (np.float32(1) + p * _power_of_two(np.int32(i)))


@intrinsic
def _power_of_two(typingctx, exponent):
    """2 ** exponent as float32, for -126 <= exponent <= 127."""

    def generate(context, builder, signature, args):
        biased = builder.add(args[0], I32(127))
        return builder.bitcast(builder.shl(biased, I32(23)), F32)

    return types.float32(types.int32), generate


@compiled(**_OPTIONS)
def swiglu(gate_up, out):
    """out[i] = silu(gate_up[i]) * gate_up[n + i], n = len(out)."""
    n = len(out)
    for i in range(n):
        gate = widen(gate_up[i])
        out[i] = narrow(gate * _sigmoid(gate) * widen(gate_up[n + i]), out[i])


@compiled(**_OPTIONS)
def gelu(x, out):
    """GELU with tanh, which is x * sigmoid(2 u): 1 + tanh(u) = 2 * sigmoid(2 u)."""
    for i in range(len(out)):
        v = x[i]
        out[i] = v * _sigmoid(_GELU_SLOPE * (v + np.float32(0.044715) * v * v * v))


@compiled(**_OPTIONS)
def add(x, y, bias, out):
    """out = x + y[:len(x)] + bias."""
    for i in range(len(out)):
        out[i] = x[i] + y[i]
    for i in range(len(bias)):
        out[i] += bias[i]


@compiled(**_OPTIONS)
def split_rotate_row(qkv, cos, sin, q, k, v):
    """One row of qkv [(Hq + 2 Hkv) D] to q [Hq, D], k, v [Hkv, D]; q and k rotated by cos, sin [D / 2] if any."""
    heads, kv_heads, size, half = q.shape[0], k.shape[0], q.shape[1], len(cos)
    for h in range(heads + 2 * kv_heads):
        to = (
            q[h] if h < heads else k[h - heads] if h < heads + kv_heads else v[h - heads - kv_heads]
        )
        at = h * size
        if half and h < heads + kv_heads:
            for i in range(half):
                a, b = widen(qkv[at + i]), widen(qkv[at + half + i])
                c, s = widen(cos[i]), widen(sin[i])
                to[i] = narrow(a * c - b * s, to[i])
                to[half + i] = narrow(b * c + a * s, to[half + i])
        else:
            for i in range(size):
                to[i] = narrow(widen(qkv[at + i]), to[i])
