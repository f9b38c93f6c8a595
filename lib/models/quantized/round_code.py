"""The vector code that rounds a block of 32 numbers to 8 bits, generated as LLVM IR.

IR, because Numba compiles loops over the block to scalar code. Introduced in chapter 11.
"""

from __future__ import annotations

import math

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lib.models.quantized.tile_code import BLOCK

_I8, _I32, _F32 = ir.IntType(8), ir.IntType(32), ir.FloatType()
_VI8, _VI32, _VF32 = (ir.VectorType(element, BLOCK) for element in (_I8, _I32, _F32))
# A block without larger inputs counts as zeros: 127 / max|x| would be infinite.
_TINY = 1e-36
# Bits of a float32 without its sign; those of infinity.
_MAGNITUDE, _INFINITY = 0x7FFFFFFF, 0x7F800000
# A float32 near 1.5 * 2 ** 23 has no bits for fractions: adding it rounds to the nearest integer, ties to even.
_ROUND, _ROUND_BITS = 1.5 * 2**23, 0x4B400000


def _all(kind: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(kind, [value] * BLOCK)


def _float32(value: float) -> ir.Constant:
    return ir.Constant(_F32, value)


@intrinsic
def round_block(typingctx, x, codes, scale, count, total):
    """Round the 32 float32 at `x` to int8, with the scale max|x| / 127. All arguments are addresses.

    Writes the codes, the scale, the sum of the codes (int32) and scale * sum (float32). A block
    with NaN or an infinity has the scale NaN and codes of 0.
    """

    def generate(context, b, signature, args):
        x, codes, scale_at, count_at, total_at = args

        def store(value, address):
            b.store(value, b.inttoptr(address, value.type.as_pointer())).align = 1

        def reduced(operation, vector):
            name = f"llvm.vector.reduce.{operation}.v{BLOCK}i32"
            kind = ir.FunctionType(_I32, [_VI32])
            return b.call(cgutils.get_or_insert_function(b.module, kind, name), [vector])

        values = b.load(b.inttoptr(x, _VF32.as_pointer()))
        values.align = 4
        # Magnitudes as integers keep their order; NaN is the largest.
        magnitudes = b.and_(b.bitcast(values, _VI32), _all(_VI32, _MAGNITUDE))
        peak = reduced("smax", magnitudes)
        finite = b.icmp_signed("<", peak, _I32(_INFINITY))
        largest = b.bitcast(peak, _F32)
        usable = b.and_(finite, b.fcmp_ordered(">", largest, _float32(_TINY)))
        inverse = b.select(usable, b.fdiv(_float32(127.0), largest), _float32(0.0))
        lanes = b.insert_element(ir.Constant(_VF32, ir.Undefined), inverse, _I32(0))
        splat = b.shuffle_vector(lanes, ir.Constant(_VF32, ir.Undefined), _all(_VI32, 0))
        scaled = b.select(finite, b.fmul(values, splat), _all(_VF32, 0.0))
        # Without flags: a fused or reordered sum would round otherwise.
        rounded = b.bitcast(b.fadd(scaled, _all(_VF32, _ROUND)), _VI32)
        integers = b.sub(rounded, _all(_VI32, _ROUND_BITS))
        count = reduced("add", integers)
        scale = b.select(finite, b.fmul(largest, _float32(1 / 127)), _float32(math.nan))
        store(b.trunc(integers, _VI8), codes)
        store(scale, scale_at)
        store(count, count_at)
        store(b.fmul(scale, b.sitofp(count, _F32)), total_at)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate
