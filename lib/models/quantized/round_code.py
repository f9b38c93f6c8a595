"""The vector code that rounds a block of 32 numbers to 8 bits, generated as LLVM IR.

IR, because Numba compiles loops over the block to scalar code. Introduced in chapter 11.
"""

from __future__ import annotations

import math

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from lib.core.vector_code import F32, I8, I32, VectorCode, filled
from lib.models.quantized.tile_code import BLOCK

_VI8, _VI32, _VF32 = (ir.VectorType(element, BLOCK) for element in (I8, I32, F32))
# A block without larger inputs counts as zeros: 127 / max|x| would be infinite.
_TINY = 1e-36
# Bits of a float32 without its sign; those of infinity.
_MAGNITUDE, _INFINITY = 0x7FFFFFFF, 0x7F800000
# A float32 near 1.5 * 2 ** 23 has no bits for fractions: adding it rounds to the nearest integer, ties to even.
_ROUND, _ROUND_BITS = 1.5 * 2**23, 0x4B400000


@intrinsic
def round_block(typingctx, x, codes, scale, count, total):
    """Round the 32 float32 at `x` to int8, with the scale max|x| / 127. All arguments are addresses.

    Writes the codes, the scale, the sum of the codes (int32) and scale * sum (float32). A block
    with NaN or an infinity has the scale NaN and codes of 0.
    """

    def generate(context, b, signature, args):
        x, codes, scale_at, count_at, total_at = args
        code = VectorCode(b)
        values = code.load(x, _VF32)
        # Magnitudes as integers keep their order; NaN is the largest.
        magnitudes = b.and_(b.bitcast(values, _VI32), filled(_VI32, _MAGNITUDE))
        peak = code.llvm("vector.reduce.smax.v32i32", I32, magnitudes)
        finite = b.icmp_signed("<", peak, I32(_INFINITY))
        largest = b.bitcast(peak, F32)
        usable = b.and_(finite, b.fcmp_ordered(">", largest, F32(_TINY)))
        inverse = b.select(usable, b.fdiv(F32(127.0), largest), F32(0.0))
        scaled = b.fmul(values, code.splat(inverse, _VF32))
        scaled = b.select(finite, scaled, filled(_VF32, 0.0))
        # Without flags: a fused or reordered sum would round otherwise.
        rounded = b.bitcast(b.fadd(scaled, filled(_VF32, _ROUND)), _VI32)
        integers = b.sub(rounded, filled(_VI32, _ROUND_BITS))
        count = code.llvm("vector.reduce.add.v32i32", I32, integers)
        scale = b.select(finite, b.fmul(largest, F32(1 / 127)), F32(math.nan))
        code.store(b.trunc(integers, _VI8), codes)
        code.store(scale, scale_at)
        code.store(count, count_at)
        code.store(b.fmul(scale, b.sitofp(count, F32)), total_at)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate
