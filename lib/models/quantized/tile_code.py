"""The vector code of a product with quantised weights, generated as LLVM IR (LLVM's intermediate representation).

A tile is 16 output channels, one per lane of a vector. Its weights are stored in the order in which they are read (see
`lib.models.quantized.weight`): one block of 32 inputs after the other, and in a block vectors of 16 x 4 bytes, with
four inputs of each channel. If the inputs are rounded to 8 bits too and the CPU has AVX-512 VNNI, one instruction
(`vpdpbusd`, which the int8 kernels of llama.cpp and OpenVINO use too) multiplies four inputs of each channel and adds
the products. On other CPUs the same sums are written as single operations, for which LLVM chooses the instructions.

IR, because Numba's code for a loop over 16 channels keeps the sums in memory and not in registers.
Introduced in chapter 11.
"""

from __future__ import annotations

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lib.core.vector_code import F16, F32, I32, I64, VectorCode, filled

LANES = 16  # output channels of a tile
BLOCK = 32  # inputs of a block, as in GGUF files; inputs rounded to int8 have one scale per block
HAS_VNNI = bool(llvm.get_host_cpu_features().get("avx512vnni"))
_VI32, _VF16, _VF32 = (ir.VectorType(element, LANES) for element in (I32, F16, F32))


class _Tile(VectorCode):
    """Generates the IR of one tile's product with `rows` input rows.

    w = scale * (code - offset) + minimum, where codes are unsigned. The offset is 128 for 8 bits,
    and for 4 bits 8 without a minimum and 0 with one; of 4 bits it becomes a part of the minimum.
    Subclasses implement `multiply_block`, for inputs as int8 and as float32.
    """

    def __init__(self, b: ir.IRBuilder, rows: int, bits: int, arguments: list) -> None:
        """arguments: see `tile_product`."""
        super().__init__(b)
        self.rows, self.bits = rows, bits
        self.words, self.scale, self.minimum, self.half, self.tile, *rest = arguments
        self.groups, self.per_group, self.x, self.xs, self.xsum, self.xtotal, *rest = rest
        self.out, self.ld = rest
        self.blocks = b.mul(self.groups, self.per_group)

    def group_value(self, base, group):
        """The 16 channels' scales or minima of a group, as float32; in memory float16 where `half`."""
        b, value = self.b, cgutils.alloca_once(self.b, _VF32)
        place = b.add(b.mul(self.tile, self.groups), group)
        with b.if_else(b.icmp_signed("!=", self.half, I64(0))) as (halves, floats):
            with halves:
                loaded = self.load(self.at(base, (place, 2 * LANES)), _VF16)
                b.store(b.fpext(loaded, _VF32), value)
            with floats:
                b.store(self.load(self.at(base, (place, 4 * LANES)), _VF32), value)
        return b.load(value)

    def group_low(self, group, scale):
        """What each input of a group adds per channel, whatever its code."""
        b, low = self.b, cgutils.alloca_once(self.b, _VF32)
        b.store(b.fmul(scale, filled(_VF32, -8.0 if self.bits == 4 else 0.0)), low)
        with b.if_then(b.icmp_signed("!=", self.minimum, I64(0))):
            b.store(self.group_value(self.minimum, group), low)
        return b.load(low)

    def block_words(self, block):
        """The block's vectors of 4 bytes per channel; signed bytes are made unsigned (+ 128)."""
        size = LANES * BLOCK * self.bits // 8
        first = self.b.mul(self.tile, self.blocks)
        base = self.at(self.words, (first, size), (block, size))
        words = [self.load(self.at(base, (I64(i), 64)), _VI32) for i in range(self.bits)]
        if self.bits == 8:  # flip the top bit of each byte: + 128
            words = [self.b.xor(word, filled(_VI32, -0x7F7F7F80)) for word in words]
        return words

    def build(self) -> None:
        """out[r, 16 channels] = sum over groups of scale * (codes . x) + low * sum(x)."""
        b = self.b
        sums = [cgutils.alloca_once(b, _VF32) for _ in range(self.rows)]
        for total in sums:
            b.store(filled(_VF32, 0.0), total)
        with cgutils.for_range(b, self.groups) as group:
            scale = self.group_value(self.scale, group.index)
            low = self.group_low(group.index, scale)
            with cgutils.for_range(b, self.per_group) as inner:
                block = b.add(b.mul(group.index, self.per_group), inner.index)
                self.multiply_block(block, scale, low, sums)
        for r, total in enumerate(sums):
            self.store(b.load(total), self.at(self.out, (self.ld, 4 * r)))

    def place(self, r, block):
        """Index of row r's block: a call's rows are side by side in each block."""
        return self.b.add(self.b.mul(block, I64(self.rows)), I64(r))

    def add_low(self, value, low, place):
        x_total = self.load(self.at(self.xtotal, (place, 4)), F32)
        return self.fma(low, self.splat(x_total, _VF32), value)

    def multiply_block(self, block, scale, low, sums):
        raise NotImplementedError


class Int8Tile(_Tile):
    """Inputs as int8 with one scale per row and block. The sums of a block are exact integers."""

    def multiply_block(self, block, scale, low, sums):
        b, words = self.b, self.block_words(block)
        if self.bits == 4:  # inputs 0-15 are the low halves of the bytes, 16-31 the high ones
            mask, four = filled(_VI32, 0x0F0F0F0F), filled(_VI32, 4)
            words = [b.and_(w, mask) for w in words] + [
                b.and_(b.lshr(w, four), mask) for w in words
            ]
        chains = 2 if self.rows == 1 else 1  # one row: two sums, whose instructions can overlap
        for r, total in enumerate(sums):
            place = self.place(r, block)
            x = self.at(self.x, (place, BLOCK))
            parts = [filled(_VI32, 0)] * chains
            if self.bits == 8:
                x_sum = self.load(self.at(self.xsum, (place, 4)), I32)
                parts[0] = self.splat(b.mul(x_sum, I32(-128)), _VI32)
            for i, word in enumerate(words):
                four_inputs = self.splat(self.load(self.at(x, (I64(i), 4)), I32), _VI32)
                parts[i % chains] = self.dot4(parts[i % chains], word, four_inputs)
            dot = b.sitofp(parts[0] if chains == 1 else b.add(*parts), _VF32)
            x_scale = self.splat(self.load(self.at(self.xs, (place, 4)), F32), _VF32)
            value = self.fma(dot, b.fmul(scale, x_scale), b.load(total))
            b.store(self.add_low(value, low, place), total)

    def dot4(self, total, word, x):
        """total + four products of word's unsigned bytes and x's signed ones, per channel."""
        b = self.b
        if HAS_VNNI:
            return self.llvm("x86.avx512.vpdpbusd.512", _VI32, total, word, x)
        for j in range(4):
            code = b.and_(b.lshr(word, filled(_VI32, 8 * j)), filled(_VI32, 255))
            signed = b.shl(x, filled(_VI32, 24 - 8 * j))
            signed = b.ashr(signed, filled(_VI32, 24))
            total = b.add(total, b.mul(code, signed))
        return total


class FloatTile(_Tile):
    """Inputs as float32: codes are converted, and products are summed in float32."""

    def place(self, r, block):
        """Index of row r's block: rows lie one after the other."""
        return self.b.add(self.b.mul(self.blocks, I64(r)), block)

    def multiply_block(self, block, scale, low, sums):
        b, words = self.b, self.block_words(block)
        chains = 4 if self.rows == 1 else 1
        parts = [[filled(_VF32, 0.0)] * chains for _ in sums]
        for i in range(8):
            for j in range(4):
                shift = 8 * j + (4 * (i // 4) if self.bits == 4 else 0)
                code = b.lshr(words[i % self.bits], filled(_VI32, shift))
                code = b.and_(code, filled(_VI32, 2**self.bits - 1))
                if self.bits == 8:
                    code = b.sub(code, filled(_VI32, 128))
                code = b.sitofp(code, _VF32)
                for r, row in enumerate(parts):
                    address = self.at(self.x, (self.place(r, block), 4 * BLOCK))
                    x = self.load(self.at(address, (I64(4 * i + j), 4)), F32)
                    row[j % chains] = self.fma(code, self.splat(x, _VF32), row[j % chains])
        for r, (total, row) in enumerate(zip(sums, parts, strict=True)):
            while len(row) > 1:
                row = [b.fadd(row[k], row[k + 1]) for k in range(0, len(row), 2)]
            value = self.fma(row[0], scale, b.load(total))
            b.store(self.add_low(value, low, self.place(r, block)), total)


def tile_product(kind: type[_Tile], row_counts: tuple[int, ...]):
    """Intrinsic that multiplies `rows` rows, one of `row_counts`, with one tile. Its arguments are int64:

    rows; bits: 4 or 8; words, scale, minimum: addresses, minimum 0 where there is none; half:
    whether scale and minimum are float16; tile: which one; groups, per_group: groups of a row,
    blocks of a group; x, xs, xsum, xtotal: addresses of the inputs, and of the scale, the sum of
    codes and the sum of inputs of each row's block; out: address of 16 outputs; ld: outputs per
    row. FloatTile has no use for xs and xsum.
    """

    @intrinsic
    def product(
        typingctx, rows, bits, words, scale, minimum, half, tile, groups, per_group, x, xs, xsum,
        xtotal, out, ld,
    ):  # fmt: skip
        def generate(context, b, signature, args):
            for num_rows in row_counts:
                for num_bits in (4, 8):
                    found = (
                        b.icmp_signed("==", value, I64(wanted))
                        for value, wanted in zip(args, (num_rows, num_bits))
                    )
                    with b.if_then(b.and_(*found)):
                        kind(b, num_rows, num_bits, args[2:]).build()
            return context.get_dummy_value()

        return types.void(*[types.int64] * 15), generate

    return product
