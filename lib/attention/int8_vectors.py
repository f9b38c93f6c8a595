"""Vector code for int8 K and V: dot products with codes, and weighted sums of codes.

The two loops are LLVM IR (LLVM's intermediate representation), as in
`lib.models.quantized.kernel`. A vector of codes is converted to floats once, in a register, for up
to four query heads that share it; Numba's own code would convert it again for each of them.
Introduced in chapter 11.
"""

from __future__ import annotations

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lib.core.numba_cache import compiled
from lib.core.vector_code import F32, I8, I32, I64, VectorCode, filled

LANES = 16 if llvm.get_host_cpu_features().get("avx512f") else 8  # floats of a vector register
KEYS = 4  # keys of one call of _dot
_CODES, _INTS, _FLOATS = (ir.VectorType(kind, LANES) for kind in (I8, I32, F32))
_FAST = ("contract", "reassoc", "nsz")  # without nnan and ninf: NaN and infinity must be kept


def _bytes_of(context, b, kind, array):
    """The array's data as an LLVM pointer to bytes.

    With addresses as integers, LLVM could not tell which arrays are read and written.
    """
    data = context.make_array(kind)(context, b, array).data
    return b.bitcast(data, I8.as_pointer())


def _at(b, base, offset, kind):
    return b.bitcast(b.gep(base, [offset]), kind.as_pointer())


def _load(b, base, offset, kind):
    value = b.load(_at(b, base, offset, kind))
    value.align = 1 if kind is _CODES else 4
    return value


def _store(b, value, base, offset):
    b.store(value, _at(b, base, offset, value.type)).align = 4


def _widened_codes(b, base, offset):
    """LANES int8 codes as float32: vpmovsxbd and vcvtdq2ps on x86."""
    return b.sitofp(b.sext(_load(b, base, offset, _CODES), _INTS), _FLOATS)


def _fma(b, total, x, y):
    b.store(b.fadd(b.load(total), b.fmul(x, y, flags=_FAST), flags=_FAST), total)


def _sums(b, vectors):
    """<4 x float>: the sums of four vectors, by adding pairs of lanes of two vectors at a time."""
    shuffled = VectorCode(b).shuffled
    width, quads = LANES, range(0, LANES, 4)

    def pairs(x, y, first, second):
        low, high = (
            [lane for q in quads for k in part for lane in (q + k if k < 4 else q + k - 4 + width,)]
            for part in (first, second)
        )
        return b.fadd(shuffled(x, y, low), shuffled(x, y, high), flags=_FAST)

    # Lanes 0-3 of a quad are x's, 4-7 are y's: unpack, then exchange halves.
    ab, cd = (pairs(x, y, (0, 4, 1, 5), (2, 6, 3, 7)) for x, y in (vectors[:2], vectors[2:]))
    total = pairs(ab, cd, (0, 1, 4, 5), (2, 3, 6, 7))
    while width > 4:
        width //= 2
        low, high = list(range(width)), list(range(width, 2 * width))
        total = b.fadd(shuffled(total, total, low), shuffled(total, total, high), flags=_FAST)
    return total


def _dot_of(group):
    @intrinsic
    def dot(
        typingctx, keys, first, offsets, at, q, q_at, q_stride, chunks, out, out_at, out_stride
    ):
        """out[g, 0:KEYS] = q[g] . codes of KEYS keys, for `group` heads; chunks * LANES elements.

        q and out are each followed by the byte at which to begin (_at) and the bytes from one head
        to the next (_stride). A key begins at byte `first` plus its element of offsets. The first
        of the KEYS elements is at byte `at` of offsets.
        """

        def generate(context, b, signature, args):
            keys, offsets, q, out = (
                _bytes_of(context, b, signature.args[i], args[i]) for i in (0, 2, 4, 8)
            )
            _, first, _, at, _, q_at, q_stride, chunks, _, out_at, out_stride = args
            sums = [[cgutils.alloca_once(b, _FLOATS) for _ in range(KEYS)] for _ in range(group)]
            for row in sums:
                for total in row:
                    b.store(filled(_FLOATS, 0.0), total)
            starts = [_load(b, offsets, b.add(at, I64(8 * k)), I64) for k in range(KEYS)]
            starts = [b.add(first, start) for start in starts]
            heads = [b.add(q_at, b.mul(q_stride, I64(g))) for g in range(group)]
            with cgutils.for_range(b, chunks) as chunk:
                element = b.mul(chunk.index, I64(LANES))
                wide = b.mul(element, I64(4))
                x = [_load(b, q, b.add(head, wide), _FLOATS) for head in heads]
                for k in range(KEYS):
                    key = _widened_codes(b, keys, b.add(starts[k], element))
                    for g in range(group):
                        _fma(b, sums[g][k], x[g], key)
            for g in range(group):
                result = _sums(b, [b.load(total) for total in sums[g]])
                _store(b, result, out, b.add(out_at, b.mul(out_stride, I64(g))))
            return context.get_dummy_value()

        integers = types.intp
        return types.void(
            keys, integers, offsets, integers, q, integers, integers, integers,
            out, integers, integers
        ), generate  # fmt: skip

    return dot


def _add_values_of(group, columns):
    @intrinsic
    def add_values(
        typingctx, values, first, offsets, count, weights, w_at, w_stride, acc, acc_at, acc_stride
    ):
        """acc[g, 0:columns * LANES] += sum over t < count of weights[g, t] * codes[t]; `group` heads.

        weights and acc are each followed by the byte at which to begin (_at) and the bytes from one
        head to the next (_stride). A value begins at byte `first` plus its element of offsets.
        """

        def generate(context, b, signature, args):
            values, offsets, weights, acc = (
                _bytes_of(context, b, signature.args[i], args[i]) for i in (0, 2, 4, 7)
            )
            _, first, _, count, _, w_at, w_stride, _, acc_at, acc_stride = args
            sums = [[cgutils.alloca_once(b, _FLOATS) for _ in range(columns)] for _ in range(group)]
            places = [
                [
                    b.add(b.add(acc_at, b.mul(acc_stride, I64(g))), I64(4 * LANES * c))
                    for c in range(columns)
                ]
                for g in range(group)
            ]
            for g in range(group):
                for c in range(columns):
                    b.store(_load(b, acc, places[g][c], _FLOATS), sums[g][c])
            rows = [b.add(w_at, b.mul(w_stride, I64(g))) for g in range(group)]
            with cgutils.for_range(b, count) as key:
                start = b.add(first, _load(b, offsets, b.mul(key.index, I64(8)), I64))
                place = b.mul(key.index, I64(4))
                x = [
                    VectorCode(b).splat(_load(b, weights, b.add(row, place), F32), _FLOATS)
                    for row in rows
                ]
                for c in range(columns):
                    value = _widened_codes(b, values, b.add(start, I64(LANES * c)))
                    for g in range(group):
                        _fma(b, sums[g][c], x[g], value)
            for g in range(group):
                for c in range(columns):
                    _store(b, b.load(sums[g][c]), acc, places[g][c])
            return context.get_dummy_value()

        integers = types.intp
        return types.void(
            values, integers, offsets, integers, weights, integers, integers,
            acc, integers, integers
        ), generate  # fmt: skip

    return add_values


_dot1, _dot2, _dot3, _dot4 = (_dot_of(group) for group in (1, 2, 3, 4))
_add1, _add2, _add3, _add4 = (_add_values_of(group, 4) for group in (1, 2, 3, 4))
_add_chunk = _add_values_of(1, 1)


@compiled
def dot(keys, first, offsets, count, group, q, q_at, q_stride, chunks, out, out_at, out_stride):
    """See `_dot_of`. Any number of heads and keys; `count` is rounded up to a multiple of KEYS."""
    while group > 0:
        n = min(group, 4)
        for t in range(0, count, KEYS):
            at, to = 8 * t, out_at + 4 * t
            if n == 4:
                _dot4(keys, first, offsets, at, q, q_at, q_stride, chunks, out, to, out_stride)
            elif n == 3:
                _dot3(keys, first, offsets, at, q, q_at, q_stride, chunks, out, to, out_stride)
            elif n == 2:
                _dot2(keys, first, offsets, at, q, q_at, q_stride, chunks, out, to, out_stride)
            else:
                _dot1(keys, first, offsets, at, q, q_at, q_stride, chunks, out, to, out_stride)
        group, q_at, out_at = group - n, q_at + n * q_stride, out_at + n * out_stride


@compiled
def add_values(
    values, first, offsets, count, group, weights, w_at, w_stride, acc, acc_at, acc_stride, chunks
):
    """See `_add_values_of`. For any number of heads and of chunks of LANES elements."""
    while group > 0:
        n = min(group, 4)
        for chunk in range(0, chunks - chunks % 4, 4):
            at, to = first + chunk * LANES, acc_at + 4 * chunk * LANES
            if n == 4:
                _add4(values, at, offsets, count, weights, w_at, w_stride, acc, to, acc_stride)
            elif n == 3:
                _add3(values, at, offsets, count, weights, w_at, w_stride, acc, to, acc_stride)
            elif n == 2:
                _add2(values, at, offsets, count, weights, w_at, w_stride, acc, to, acc_stride)
            else:
                _add1(values, at, offsets, count, weights, w_at, w_stride, acc, to, acc_stride)
        for chunk in range(chunks - chunks % 4, chunks):
            at, to = first + chunk * LANES, acc_at + 4 * chunk * LANES
            for g in range(n):
                row = w_at + g * w_stride
                out = to + g * acc_stride
                _add_chunk(values, at, offsets, count, weights, row, w_stride, acc, out, acc_stride)
        group, w_at, acc_at = group - n, w_at + n * w_stride, acc_at + n * acc_stride
