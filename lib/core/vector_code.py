"""What writes LLVM IR (LLVM's intermediate representation) with vectors, for the kernels on a CPU.

The IR states which vectors stay in registers; Numba's code for a loop often keeps sums in memory. The kernels are in
`lib.attention.row_code`, `lib.models.fused.tile_product` and `lib.models.quantized`. Introduced in chapter 7.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir
from numba.core import cgutils

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()
_FMA = ("contract",)
# 2 ** f on [0, 1): a minimax polynomial, highest power first.
POWERS_OF_TWO = (
    1.8775767e-3, 8.9893397e-3, 5.5826318e-2, 2.4015361e-1, 6.9315308e-1, 9.9999994e-1
)  # fmt: skip


def filled(kind: ir.VectorType, value: int | float) -> ir.Constant:
    """The vector with `value` in each lane."""
    return ir.Constant(kind, [value] * kind.count)


class VectorCode:
    """Writes instructions with `b`. Addresses are int64 and need no alignment."""

    def __init__(self, b: ir.IRBuilder) -> None:
        self.b = b

    def at(self, base, *terms: tuple):
        """Address: base + the sum of index * size over `terms`, sizes in bytes."""
        for index, size in terms:
            base = self.b.add(base, self.b.mul(index, I64(size)))
        return base

    def load(self, address, kind: ir.Type):
        """The value of type `kind` at an address."""
        value = self.b.load(self.b.inttoptr(address, kind.as_pointer()))
        value.align = 1
        return value

    def store(self, value, address) -> None:
        """Write a value to an address."""
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer())).align = 1

    def splat(self, value, kind: ir.VectorType):
        """The vector with a computed `value` in each lane."""
        lane = self.b.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
        return self.shuffled(lane, lane, [0] * kind.count)

    def shuffled(self, a, c, order: Sequence[int]):
        """Lanes of a and c in the given order; c's are counted on from a's."""
        return self.b.shuffle_vector(a, c, ir.Constant(ir.VectorType(I32, len(order)), order))

    def fma(self, a, x, y):
        """a * x + y, rounded once where the CPU can."""
        return self.b.fadd(self.b.fmul(a, x, flags=_FMA), y, flags=_FMA)

    def llvm(self, name: str, kind: ir.Type, *arguments, flags: tuple[str, ...] = ()):
        """The result, of type `kind`, of LLVM's function `llvm.name`."""
        function = ir.FunctionType(kind, [a.type for a in arguments])
        function = cgutils.get_or_insert_function(self.b.module, function, f"llvm.{name}")
        return self.b.call(function, arguments, fastmath=flags)
