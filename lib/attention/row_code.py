"""The vector code of attention, generated as LLVM IR: a query with 8 keys, the softmax of 32 scores, 8 weights with 8 values.

IR, because Numba's code for a dot product adds up each key's lanes by itself, which takes longer than the products;
here the lanes of 8 keys are added together. Its softmax is several loops, here it is one sequence of instructions.
Rows are float32 or bfloat16 (as uint16); all sums are in float32.
Introduced in chapter 7.
"""

from __future__ import annotations

import math

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lib.core.numba_cache import compiled
from lib.core.vector_code import F32, I8, I16, I32, I64, POWERS_OF_TWO, VectorCode, filled

ROWS, LANES, SCORES = 8, 16, 32
_VI16, _VI32, _VF32 = (ir.VectorType(element, LANES) for element in (I16, I32, F32))
_MI32, _MF32 = ir.VectorType(I32, SCORES), ir.VectorType(F32, SCORES)
_ZERO = filled(_VF32, 0.0)


class _Rows(VectorCode):
    """Loads 16 numbers from each of 8 rows, which begin at base + offsets[0..7]."""

    def __init__(self, b: ir.IRBuilder, like: types.Array, base, offsets) -> None:
        super().__init__(b)
        self.is_bfloat16 = like.dtype == types.uint16
        self.starts = [
            b.add(base, self.load(b.add(offsets, I64(8 * row)), I64)) for row in range(ROWS)
        ]

    def floats(self, row, chunk):
        """Numbers 16 * chunk .. 16 * chunk + 15 of a row."""
        if not self.is_bfloat16:
            return self.load(self.at(self.starts[row], (chunk, 4 * LANES)), _VF32)
        bits = self.load(self.at(self.starts[row], (chunk, 2 * LANES)), _VI16)
        upper = self.b.shl(self.b.zext(bits, _VI32), filled(_VI32, 16))
        return self.b.bitcast(upper, _VF32)

    def added(self, a, c, low, high):
        return self.b.fadd(self.shuffled(a, c, low), self.shuffled(a, c, high))

    def totals(self, sums):
        """The sum of each of 8 vectors, as one vector: half of the remaining lanes are added at a time.

        Every order takes 16-byte pieces as they lie, which is one cheap instruction of AVX-512.
        """
        pieces = range(0, LANES, 4)
        low = [i for p in pieces for i in (p, p + LANES, p + 1, p + 1 + LANES)]
        high = [i for p in pieces for i in (p + 2, p + 2 + LANES, p + 3, p + 3 + LANES)]
        sums = [self.added(a, c, low, high) for a, c in zip(sums[::2], sums[1::2])]
        low = [i for p in pieces for i in (p, p + 1, p + LANES, p + 1 + LANES)]
        high = [i + 2 for i in low]
        first, second = (self.added(a, c, low, high) for a, c in zip(sums[::2], sums[1::2]))
        both = self.added(
            first, second, [*range(8), *range(16, 24)], [*range(8, 16), *range(24, 32)]
        )
        even, odd = [*range(4), *range(8, 12)], [*range(4, 8), *range(12, 16)]
        return self.added(both, both, even, odd)


@intrinsic
def _prefetch_line(typingctx, address):
    """Start loading the cache line at `address` into the second level, and do not wait."""

    def generate(context, builder, signature, args):
        pointer = I8.as_pointer()
        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch", [pointer], ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
        )
        builder.call(prefetch, [builder.inttoptr(args[0], pointer), I32(0), I32(2), I32(1)])
        return context.get_dummy_value()

    return types.void(types.intp), generate


@compiled
def prefetch(address, num_bytes):
    """Ask for the memory from `address` on, without waiting."""
    for line in range(0, num_bytes, 64):
        _prefetch_line(address + line)


@intrinsic
def dot_rows(typingctx, like, x, base, offsets, chunks, out):
    """out[r] = x . row r, for 8 rows, over the first 16 * chunks numbers of each.

    like: any array of the rows' type; x (float32), base, offsets (of 8 int64, in bytes), out
    (float32): addresses.
    """

    def generate(context, b, signature, args):
        x, base, offsets, chunks, out = args[1:]
        rows = _Rows(b, like, base, offsets)
        sums = [cgutils.alloca_once(b, _VF32) for _ in range(ROWS)]
        for total in sums:
            b.store(_ZERO, total)
        with cgutils.for_range(b, chunks) as loop:
            inputs = rows.load(rows.at(x, (loop.index, 4 * LANES)), _VF32)
            for r, total in enumerate(sums):
                b.store(rows.fma(inputs, rows.floats(r, loop.index), b.load(total)), total)
        rows.store(rows.totals([b.load(total) for total in sums]), out)
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 5), generate


@intrinsic
def add_rows(typingctx, like, weights, base, offsets, chunks, out):
    """out += weights[r] * row r, for 8 rows, over the first 16 * chunks numbers of each.

    weights (8 float32): an address; the others as in `dot_rows`.
    """

    def generate(context, b, signature, args):
        weights, base, offsets, chunks, out = args[1:]
        rows = _Rows(b, like, base, offsets)
        factors = [
            rows.splat(rows.load(b.add(weights, I64(4 * r)), F32), _VF32) for r in range(ROWS)
        ]
        with cgutils.for_range(b, chunks) as loop:
            to = rows.at(out, (loop.index, 4 * LANES))
            # Two sums, whose instructions can overlap.
            sums = [rows.load(to, _VF32), _ZERO]
            for r, factor in enumerate(factors):
                sums[r % 2] = rows.fma(factor, rows.floats(r, loop.index), sums[r % 2])
            rows.store(b.fadd(*sums), to)
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 5), generate


@intrinsic
def softmax_scores(typingctx, scores, hidden, count, peak):
    """In place, for 32 scores: exp(score - top) of those from `hidden` to before `count`, else 0.

    top is the largest of these scores and `peak`. Returns (top, the sum of the results). scores:
    the address of 32 float32; peak: float32. exp is exact to 2e-7 relative.
    """

    def generate(context, b, signature, args):
        scores, hidden, count, peak = args
        code = VectorCode(b)
        values = code.load(scores, _MF32)
        lanes = ir.Constant(_MI32, list(range(SCORES)))
        first, end = (code.splat(b.trunc(x, I32), _MI32) for x in (hidden, count))
        seen = b.and_(b.icmp_signed(">=", lanes, first), b.icmp_signed("<", lanes, end))
        values = b.select(seen, values, code.splat(peak, _MF32))
        # The flags allow a tree of maxima or sums instead of a chain.
        top = code.llvm("vector.reduce.fmax.v32f32", F32, values, flags=("nnan", "nsz"))
        top = b.select(b.fcmp_ordered(">", top, peak), top, peak)
        exponents = b.fmul(b.fsub(values, code.splat(top, _MF32)), filled(_MF32, math.log2(math.e)))
        least = filled(_MF32, -126.0)
        exponents = b.select(b.fcmp_ordered("<", exponents, least), least, exponents)  # NaN stays
        whole = code.llvm("floor.v32f32", _MF32, exponents)
        fraction = b.fsub(exponents, whole)
        power = filled(_MF32, POWERS_OF_TWO[0])
        for coefficient in POWERS_OF_TWO[1:]:
            power = code.fma(power, fraction, filled(_MF32, coefficient))
        bits = b.add(b.fptosi(whole, _MI32), filled(_MI32, 127))
        bits = b.shl(bits, filled(_MI32, 23))
        found = b.select(seen, b.fmul(power, b.bitcast(bits, _MF32)), filled(_MF32, 0.0))
        code.store(found, scores)
        zero, sum_of = F32(0.0), "vector.reduce.fadd.v32f32"
        total = code.llvm(sum_of, F32, zero, found, flags=("reassoc",))
        return context.make_tuple(b, signature.return_type, (top, total))

    pair = types.UniTuple(types.float32, 2)
    return pair(types.int64, types.int64, types.int64, types.float32), generate
