"""What a layer does around attention, as compiled loops: norms, rotation, activation, and products of few rows.

A product of few rows takes at least the time to read its weights. `_tile_product` reads them in the order of memory
(see `lib.models.packed_tiles`): for each input it multiplies the weights of 64 outputs, four AVX-512 registers, with
one number of each row. The sums stay in registers. That loop is generated as LLVM IR (LLVM's intermediate
representation), because Numba's code for a loop over 64 outputs keeps the sums in memory.

bfloat16 comes as uint16; all arithmetic is in float32. An empty array stands for a bias that is not there.
All kernels are in one file because Numba's cache of compiled code depends only on the file that defines a function.
Introduced in chapter 8.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from lib.core.numba_cache import PRANGE, compiled

TILE, HALF_TILE = 64, 32  # outputs; threads divide a product in half tiles
# Without `nnan` and `ninf`: a NaN or an infinity in a row has to reach that row's outputs.
_FASTMATH = {"contract", "reassoc", "nsz", "arcp"}
_FMA = ("contract",)
_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_LOG2E = np.float32(math.log2(math.e))
_GELU_SLOPE = np.float32(2 * math.sqrt(2 / math.pi))


@intrinsic
def _widen(typingctx, x):
    """float32 as it is; uint16 as the upper half of a float32, which is what bfloat16 is."""

    def generate(context, builder, signature, args):
        if signature.args[0] == types.float32:
            return args[0]
        return builder.bitcast(builder.shl(builder.zext(args[0], _I32), _I32(16)), _F32)

    return types.float32(x), generate


@intrinsic
def _narrow(typingctx, x, like):
    """float32 x in the type of `like`: itself, or the nearest bfloat16's bits, ties to even; NaN stays NaN."""

    def generate(context, builder, signature, args):
        if signature.return_type == types.float32:
            return args[0]
        bits = builder.bitcast(args[0], _I32)
        odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
        rounded = builder.add(bits, builder.add(odd, _I32(0x7FFF)))
        nan = builder.fcmp_unordered("uno", args[0], args[0])
        kept = builder.select(nan, _I32(0x7FC00000), rounded)
        return builder.trunc(builder.lshr(kept, _I32(16)), _I16)

    return like(types.float32, like), generate


def _tile_product(rows: int, outputs: int):
    """Intrinsic that multiplies `rows` rows of inputs with the weights of `outputs` outputs of one tile."""
    floats, integers = ir.VectorType(_F32, outputs), ir.VectorType(_I32, outputs)

    @intrinsic
    def product(typingctx, w, first, x, x_stride, inputs, out, out_stride):
        """first: offset of the weights in w, bytes; x, out: addresses; strides: float32 elements per row."""
        pairs = w.dtype == types.uint16

        def generate(context, b, signature, args):
            array = context.make_array(signature.args[0])(context, b, args[0])
            first, x, x_stride, inputs, out, out_stride = args[1:]
            base = b.add(b.ptrtoint(array.data, _I64), first)

            def at(address, index, size):
                return b.add(address, b.mul(index, _I64(size)))

            def pointer(address, kind):
                return b.inttoptr(address, kind.as_pointer())

            def load(address, kind):
                value = b.load(pointer(address, kind))
                value.align = 4
                return value

            def splat(value):
                undefined = ir.Constant(floats, ir.Undefined)
                lanes = b.insert_element(undefined, value, _I32(0))
                return b.shuffle_vector(lanes, undefined, ir.Constant(integers, [0] * outputs))

            sums = [cgutils.alloca_once(b, floats) for _ in range(rows)]
            for total in sums:
                b.store(ir.Constant(floats, [0.0] * outputs), total)
            per_step = 2 if pairs else 1
            steps = b.udiv(inputs, _I64(per_step))
            with cgutils.for_range(b, steps) as loop:
                here = at(base, loop.index, 4 * TILE)  # a pair of bfloat16 is as large as a float32
                if pairs:
                    word = load(here, integers)
                    even = b.shl(word, ir.Constant(integers, [16] * outputs))
                    odd = b.and_(word, ir.Constant(integers, [-(2**16)] * outputs))
                    weights = [b.bitcast(even, floats), b.bitcast(odd, floats)]
                else:
                    weights = [load(here, floats)]
                for row, total in enumerate(sums):
                    inputs_at = at(at(x, b.mul(_I64(row), x_stride), 4), loop.index, 4 * per_step)
                    for j, weight in enumerate(weights):
                        one = splat(load(at(inputs_at, _I64(j), 4), _F32))
                        value = b.fmul(weight, one, flags=_FMA)
                        b.store(b.fadd(value, b.load(total), flags=_FMA), total)
            for row, total in enumerate(sums):
                to = at(out, b.mul(_I64(row), out_stride), 4)
                b.store(b.load(total), pointer(to, floats)).align = 4
            return context.get_dummy_value()

        return types.void(w, *[types.int64] * 6), generate

    return product


_tile_1, _tile_2, _tile_4 = (_tile_product(rows, TILE) for rows in (1, 2, 4))
_half_1, _half_2, _half_4 = (_tile_product(rows, HALF_TILE) for rows in (1, 2, 4))


@compiled(fastmath=_FASTMATH)
def _product_share(w, x, out, share, shares):
    """A thread's share of out [T, N] = x [T, K] W^T.

    x and out are float32; N and K are filled up to whole tiles of w.
    """
    rows, k, n = np.int64(x.shape[0]), np.int64(x.shape[1]), np.int64(out.shape[1])
    tile_bytes = np.int64(w.itemsize * (w.size // len(w)))
    halves = 2 * len(w)
    half, end = halves * share // shares, halves * (share + 1) // shares
    while half < end:
        whole = half % 2 == 0 and half + 2 <= end
        first = np.int64((half // 2) * tile_bytes + (half % 2) * HALF_TILE * 4)
        t = 0
        while t < rows:
            x_at = np.int64(x.ctypes.data + 4 * t * k)
            out_at = np.int64(out.ctypes.data + 4 * (t * n + half * HALF_TILE))
            if rows - t >= 4:
                if whole:
                    _tile_4(w, first, x_at, k, k, out_at, n)
                else:
                    _half_4(w, first, x_at, k, k, out_at, n)
                t += 4
            elif rows - t >= 2:
                if whole:
                    _tile_2(w, first, x_at, k, k, out_at, n)
                else:
                    _half_2(w, first, x_at, k, k, out_at, n)
                t += 2
            else:
                if whole:
                    _tile_1(w, first, x_at, k, k, out_at, n)
                else:
                    _half_1(w, first, x_at, k, k, out_at, n)
                t += 1
        half += 2 if whole else 1


@compiled(fastmath=_FASTMATH)
def _room(w, rows, outputs):
    """Memory for `rows` rows of inputs of w (zeros) or of outputs (not initialised), filled up to whole tiles."""
    if outputs:
        return np.empty((rows, len(w) * TILE), np.float32)
    return np.zeros((rows, w.size // (len(w) * TILE)), np.float32)


@compiled(fastmath=_FASTMATH)
def _widened(x, w):
    """x [T, K] as float32, with zeros up to the number of inputs of w."""
    inputs = _room(w, x.shape[0], False)
    for t in range(x.shape[0]):
        for i in range(x.shape[1]):
            inputs[t, i] = _widen(x[t, i])
    return inputs


@compiled(fastmath=_FASTMATH)
def _norm(x, weight, bias, eps, out):
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


@compiled(fastmath=_FASTMATH)
def _sigmoid(x):
    """1 / (1 + exp(-x)), to 3e-7 relative; LLVM vectorises it, unlike a call of libm.

    exp(-x) = 2 ** (i + f) = 2 ** i * p(f): i becomes the exponent's bits, p is a minimax polynomial on [0, 1).
    """
    y = min(max(-x * _LOG2E, np.float32(-126)), np.float32(126))
    i = math.floor(y)
    f = y - np.float32(i)
    p = np.float32(1.8775767e-3)
    p = p * f + np.float32(8.9893397e-3)
    p = p * f + np.float32(5.5826318e-2)
    p = p * f + np.float32(2.4015361e-1)
    p = p * f + np.float32(6.9315308e-1)
    p = p * f + np.float32(9.9999994e-1)
    return np.float32(1) / (np.float32(1) + p * _power_of_two(np.int32(i)))


@intrinsic
def _power_of_two(typingctx, exponent):
    """2 ** exponent as float32, for -126 <= exponent <= 127."""

    def generate(context, builder, signature, args):
        biased = builder.add(args[0], _I32(127))
        return builder.bitcast(builder.shl(biased, _I32(23)), _F32)

    return types.float32(types.int32), generate


@compiled(fastmath=_FASTMATH)
def _swiglu(gate_up, out):
    """out[i] = silu(gate_up[i]) * gate_up[n + i], n = len(out)."""
    n = len(out)
    for i in range(n):
        gate = _widen(gate_up[i])
        out[i] = _narrow(gate * _sigmoid(gate) * _widen(gate_up[n + i]), out[i])


@compiled(fastmath=_FASTMATH)
def _gelu(x, out):
    """GELU with tanh, which is x * sigmoid(2 u): 1 + tanh(u) = 2 * sigmoid(2 u)."""
    for i in range(len(out)):
        v = x[i]
        out[i] = v * _sigmoid(_GELU_SLOPE * (v + np.float32(0.044715) * v * v * v))


@compiled(fastmath=_FASTMATH)
def _add(x, y, bias, out):
    """out = x + y[:len(x)] + bias."""
    for i in range(len(out)):
        out[i] = x[i] + y[i]
    for i in range(len(bias)):
        out[i] += bias[i]


@compiled(fastmath=_FASTMATH)
def _split_rotate_row(qkv, cos, sin, q, k, v):
    """One row of qkv [(Hq + 2 Hkv) D] to q [Hq, D], k, v [Hkv, D]; q and k rotated by cos, sin [D / 2] if any."""
    heads, kv_heads, size, half = q.shape[0], k.shape[0], q.shape[1], len(cos)
    for h in range(heads + 2 * kv_heads):
        to = (
            q[h] if h < heads else k[h - heads] if h < heads + kv_heads else v[h - heads - kv_heads]
        )
        at = h * size
        if half and h < heads + kv_heads:
            for i in range(half):
                a, b = _widen(qkv[at + i]), _widen(qkv[at + half + i])
                c, s = _widen(cos[i]), _widen(sin[i])
                to[i] = _narrow(a * c - b * s, to[i])
                to[half + i] = _narrow(b * c + a * s, to[half + i])
        else:
            for i in range(size):
                to[i] = _narrow(_widen(qkv[at + i]), to[i])


# Few rows: products included


@compiled(parallel=PRANGE, fastmath=_FASTMATH)
def few_rows_product(x, w, bias, out, threads):
    """out [T, N] = x [T, K] W^T + bias."""
    inputs, sums = _widened(x, w), _room(w, x.shape[0], True)
    for share in prange(threads):
        _product_share(w, inputs, sums, share, threads)
    for t in range(x.shape[0]):
        for i in range(len(bias)):
            sums[t, i] += bias[i]
        for i in range(out.shape[1]):
            out[t, i] = _narrow(sums[t, i], out[t, i])


@compiled(parallel=PRANGE, fastmath=_FASTMATH)
def few_rows_qkv(x, norm_weight, norm_bias, eps, w, bias, cos, sin, q, k, v, threads):
    """Norm of x [T, d], product to q [T, Hq, D] and k, v [T, Hkv, D], rotation by cos, sin [T, D / 2]."""
    rows = x.shape[0]
    inputs, sums = _widened(x, w), _room(w, rows, True)
    for t in range(rows):
        row = inputs[t, : x.shape[1]]
        _norm(row, norm_weight, norm_bias, eps, row)
    for share in prange(threads):
        _product_share(w, inputs, sums, share, threads)
    for t in range(rows):
        for i in range(len(bias)):
            sums[t, i] += bias[i]
        _split_rotate_row(sums[t], cos[t], sin[t], q[t], k[t], v[t])


@compiled(parallel=PRANGE, fastmath=_FASTMATH)
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
    inputs, sums = _widened(y, proj), _room(proj, rows, True)
    for share in prange(threads):
        _product_share(proj, inputs, sums, share, threads)
    normed = _room(wide, rows, False)
    for t in range(rows):
        for i in range(d):
            stream[t, i] = _widen(x[t, i])
        _add(stream[t], sums[t], proj_bias, stream[t])
        _norm(stream[t], norm_weight, norm_bias, eps, normed[t])
    hidden, acted = _room(wide, rows, True), _room(down, rows, False)
    for share in prange(threads):
        _product_share(wide, normed, hidden, share, threads)
    for t in range(rows):
        for i in range(len(wide_bias)):
            hidden[t, i] += wide_bias[i]
        if gated:
            _swiglu(hidden[t], acted[t, :width])
        else:
            _gelu(hidden[t], acted[t, :width])
    result = _room(down, rows, True)
    for share in prange(threads):
        _product_share(down, acted, result, share, threads)
    for t in range(rows):
        _add(stream[t], result[t], down_bias, stream[t])
        for i in range(d):
            out[t, i] = _narrow(stream[t, i], out[t, i])


# Any number of rows: what lies between the products. Threads divide the rows.


@compiled(parallel=PRANGE, fastmath=_FASTMATH)
def rms_norm(x, weight, eps, out, threads):
    """Norm of each row of x [T, d]."""
    rows, d = x.shape
    for share in prange(threads):
        wide, none = np.empty(d, np.float32), np.empty(0, np.float32)
        for t in range(rows * share // threads, rows * (share + 1) // threads):
            for i in range(d):
                wide[i] = _widen(x[t, i])
            _norm(wide, weight, none, eps, wide)
            for i in range(d):
                out[t, i] = _narrow(wide[i], out[t, i])


@compiled(parallel=PRANGE, fastmath=_FASTMATH)
def add_norm(x, y, weight, bias, eps, total, out, threads):
    """total = x + y, out = the norm of it: all [T, d]. LayerNorm where there is a bias, else RMSNorm."""
    rows, d = x.shape
    for share in prange(threads):
        wide = np.empty(d, np.float32)
        for t in range(rows * share // threads, rows * (share + 1) // threads):
            for i in range(d):
                total[t, i] = _narrow(_widen(x[t, i]) + _widen(y[t, i]), total[t, i])
                wide[i] = _widen(total[t, i])
            _norm(wide, weight, bias, eps, wide)
            for i in range(d):
                out[t, i] = _narrow(wide[i], out[t, i])


@compiled(parallel=PRANGE, fastmath=_FASTMATH)
def split_rotate(qkv, cos, sin, q, k, v, threads):
    """qkv [T, (Hq + 2 Hkv) D] to rotated q [T, Hq, D] and k [T, Hkv, D], and v [T, Hkv, D]."""
    rows = qkv.shape[0]
    for share in prange(threads):
        for t in range(rows * share // threads, rows * (share + 1) // threads):
            _split_rotate_row(qkv[t], cos[t], sin[t], q[t], k[t], v[t])


@compiled(parallel=PRANGE, fastmath=_FASTMATH)
def swiglu(gate_up, out, threads):
    """out [T, n] = silu(gate) * up, where gate_up [T, 2 n] has gate before up."""
    rows = gate_up.shape[0]
    for share in prange(threads):
        for t in range(rows * share // threads, rows * (share + 1) // threads):
            _swiglu(gate_up[t], out[t])
