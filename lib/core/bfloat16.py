"""bfloat16 inside compiled loops: NumPy has no such type, so its bits come as uint16.

A bfloat16 is the upper half of a float32. All arithmetic is in float32. LLVM vectorises both
conversions. Introduced in chapter 7.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_I16, _I32, _F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()


@intrinsic
def widen(typingctx, x):
    """float32 as it is; uint16 as the upper half of a float32, which is what bfloat16 is."""

    def generate(context, builder, signature, args):
        if signature.args[0] == types.float32:
            return args[0]
        return builder.bitcast(builder.shl(builder.zext(args[0], _I32), _I32(16)), _F32)

    return types.float32(x), generate


@intrinsic
def narrow(typingctx, x, like):
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
