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

ROWS, LANES, SCORES = 8, 16, 32
_FMA = ("contract",)
_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_VI16, _VI32, _VF32 = (ir.VectorType(element, LANES) for element in (_I16, _I32, _F32))
_MI32, _MF32 = ir.VectorType(_I32, SCORES), ir.VectorType(_F32, SCORES)
_ZERO = ir.Constant(_VF32, [0.0] * LANES)
# 2 ** f on [0, 1): a minimax polynomial, highest power first.
POWERS = (1.8775767e-3, 8.9893397e-3, 5.5826318e-2, 2.4015361e-1, 6.9315308e-1, 9.9999994e-1)


class _Rows:
    """Generates loads of 16 numbers from each of 8 rows, which begin at base + offsets[0..7]."""

    def __init__(self, builder: ir.IRBuilder, like: types.Array, base, offsets) -> None:
        self.b, self.is_bfloat16 = builder, like.dtype == types.uint16
        self.starts = [
            builder.add(base, self.load(builder.add(offsets, _I64(8 * row)), _I64))
            for row in range(ROWS)
        ]

    def load(self, address, kind):
        value = self.b.load(self.b.inttoptr(address, kind.as_pointer()))
        value.align = 8 if kind is _I64 else 4
        return value

    def store(self, value, address):
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer())).align = 4

    def floats(self, row, chunk):
        """Numbers 16 * chunk .. 16 * chunk + 15 of a row."""
        b = self.b
        if not self.is_bfloat16:
            return self.load(b.add(self.starts[row], b.mul(chunk, _I64(4 * LANES))), _VF32)
        address = b.add(self.starts[row], b.mul(chunk, _I64(2 * LANES)))
        bits = b.load(b.inttoptr(address, _VI16.as_pointer()))
        bits.align = 2
        upper = b.shl(b.zext(bits, _VI32), ir.Constant(_VI32, [16] * LANES))
        return b.bitcast(upper, _VF32)

    def fma(self, a, x, y):
        return self.b.fadd(self.b.fmul(a, x, flags=_FMA), y, flags=_FMA)

    def shuffled(self, a, c, order):
        return self.b.shuffle_vector(a, c, ir.Constant(ir.VectorType(_I32, len(order)), order))

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
        pointer = ir.IntType(8).as_pointer()
        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch", [pointer], ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
        )
        builder.call(prefetch, [builder.inttoptr(args[0], pointer), _I32(0), _I32(2), _I32(1)])
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
            inputs = rows.load(b.add(x, b.mul(loop.index, _I64(4 * LANES))), _VF32)
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
        factors = []
        for r in range(ROWS):
            one = rows.load(b.add(weights, _I64(4 * r)), _F32)
            lane = b.insert_element(ir.Constant(_VF32, ir.Undefined), one, _I32(0))
            factors.append(rows.shuffled(lane, lane, [0] * LANES))
        with cgutils.for_range(b, chunks) as loop:
            to = b.add(out, b.mul(loop.index, _I64(4 * LANES)))
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

        def everywhere(value):
            return ir.Constant(_MF32, [value] * SCORES)

        def splat(value, kind):
            lane = b.insert_element(ir.Constant(kind, ir.Undefined), value, _I32(0))
            return b.shuffle_vector(lane, lane, ir.Constant(_MI32, [0] * SCORES))

        def of_vectors(name, kind, *vectors):
            function = ir.FunctionType(kind, [v.type for v in vectors])
            return cgutils.get_or_insert_function(b.module, function, f"llvm.{name}")

        pointer = b.inttoptr(scores, _MF32.as_pointer())
        values = b.load(pointer)
        values.align = 4
        lanes = ir.Constant(_MI32, list(range(SCORES)))
        first, end = (splat(b.trunc(x, _I32), _MI32) for x in (hidden, count))
        seen = b.and_(b.icmp_signed(">=", lanes, first), b.icmp_signed("<", lanes, end))
        values = b.select(seen, values, splat(peak, _MF32))
        # The flags allow a tree of maxima or sums instead of a chain.
        largest = of_vectors("vector.reduce.fmax.v32f32", _F32, values)
        top = b.call(largest, [values], fastmath=("nnan", "nsz"))
        top = b.select(b.fcmp_ordered(">", top, peak), top, peak)
        exponents = b.fmul(b.fsub(values, splat(top, _MF32)), everywhere(math.log2(math.e)))
        least = everywhere(-126.0)
        exponents = b.select(b.fcmp_ordered("<", exponents, least), least, exponents)  # NaN stays
        whole = b.call(of_vectors("floor.v32f32", _MF32, exponents), [exponents])
        fraction = b.fsub(exponents, whole)
        power = everywhere(POWERS[0])
        for coefficient in POWERS[1:]:
            product = b.fmul(power, fraction, flags=_FMA)
            power = b.fadd(product, everywhere(coefficient), flags=_FMA)
        bits = b.add(b.fptosi(whole, _MI32), ir.Constant(_MI32, [127] * SCORES))
        bits = b.shl(bits, ir.Constant(_MI32, [23] * SCORES))
        found = b.select(seen, b.fmul(power, b.bitcast(bits, _MF32)), everywhere(0.0))
        b.store(found, pointer).align = 4
        function = ir.FunctionType(_F32, [_F32, _MF32])
        added = cgutils.get_or_insert_function(b.module, function, "llvm.vector.reduce.fadd.v32f32")
        total = b.call(added, [ir.Constant(_F32, 0.0), found], fastmath=("reassoc",))
        return context.make_tuple(b, signature.return_type, (top, total))

    pair = types.UniTuple(types.float32, 2)
    return pair(types.int64, types.int64, types.int64, types.float32), generate
