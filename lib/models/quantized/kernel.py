"""Products with quantised weights on a CPU: compiled loops that multiply with the integer codes.

A tile is 16 output channels, one per lane of a vector. Its weights are stored in the order in which
they are read (see `lib.models.quantized.weight`): one block of 32 inputs after the other, and in a
block vectors of 16 x 4 bytes, with four inputs of each channel. If the inputs are rounded to 8 bits
too and the CPU has AVX-512 VNNI, one instruction (`vpdpbusd`, which the int8 kernels of llama.cpp
and OpenVINO use too) multiplies four inputs of each channel and adds the products. On other CPUs
the same sums are written as single operations, for which LLVM chooses the instructions.

The vector code is generated as LLVM IR (LLVM's intermediate representation), because Numba's code
for a loop over 16 channels keeps the sums in memory and not in registers. It is all in this file
because Numba compiles a cached function again only when the function's own file changes.
Introduced in chapter 11.
"""

from __future__ import annotations

import math

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from lib.core.numba_cache import PRANGE, compiled

LANES = 16  # output channels of a tile
BLOCK = 32  # inputs of a block, as in GGUF files; inputs rounded to int8 have one scale per block
INT8_ROWS, FLOAT_ROWS, FEW_ROWS = 16, 8, 4  # input rows per unpacking of the weights
HAS_VNNI = bool(llvm.get_host_cpu_features().get("avx512vnni"))
# Without `nnan` and `ninf`: a NaN or an infinity in a row has to reach that row's outputs.
_FASTMATH = {"contract", "reassoc", "nsz", "arcp"}
_FMA = ("contract",)
_TINY = np.float32(
    1e-36
)  # a block without larger inputs counts as zeros: 127 / max|x| would be infinite
_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_F16, _F32 = ir.HalfType(), ir.FloatType()
_VI32, _VF16, _VF32 = (ir.VectorType(element, LANES) for element in (_I32, _F16, _F32))


def _constant(kind: ir.VectorType, value: int | float) -> ir.Constant:
    return ir.Constant(kind, [value] * LANES)


class _Tile:
    """Generates the IR of one tile's product with `rows` input rows.

    Subclasses implement `multiply_block`, for inputs as int8 and as float32.
    """

    def __init__(self, builder, context, rows, words, scale, minimum, arguments):
        self.b, self.rows = builder, rows
        self.bits = 4 if words[0].dtype == types.uint8 else 8
        self.scale_type = _VF16 if scale[0].dtype == types.uint16 else _VF32
        data = [
            context.make_array(kind)(context, builder, value).data for kind, value in (words, scale)
        ]
        self.words, self.scale = (builder.ptrtoint(pointer, _I64) for pointer in data)
        self.minimum = None
        if minimum[0] != types.none:
            array = context.make_array(minimum[0])(context, builder, minimum[1])
            self.minimum = builder.ptrtoint(array.data, _I64)
        # w = scale * (code - offset) + minimum, where codes are unsigned.
        self.offset = 128 if self.bits == 8 else 8 if self.minimum is None else 0
        self.tile, self.groups, self.per_group, self.x, self.xs, self.xsum, self.out, self.ld = (
            arguments
        )
        self.blocks = builder.mul(self.groups, self.per_group)

    def at(self, base, *terms):
        """Address: base + the sum of index * size over `terms`, sizes in bytes."""
        for index, size in terms:
            base = self.b.add(base, self.b.mul(index, _I64(size)))
        return base

    def load(self, address, kind):
        value = self.b.load(self.b.inttoptr(address, kind.as_pointer()))
        value.align = 1
        return value

    def splat(self, value, kind):
        undefined = ir.Constant(kind, ir.Undefined)
        vector = self.b.insert_element(undefined, value, _I32(0))
        return self.b.shuffle_vector(vector, undefined, _constant(_VI32, 0))

    def fma(self, a, x, y):
        return self.b.fadd(self.b.fmul(a, x, flags=_FMA), y, flags=_FMA)

    def group_value(self, base, group):
        """The 16 channels' scales or minima of a group, as float32."""
        size = 2 * LANES if self.scale_type == _VF16 else 4 * LANES
        first = self.b.mul(self.tile, self.groups)
        value = self.load(self.at(base, (first, size), (group, size)), self.scale_type)
        return self.b.fpext(value, _VF32) if self.scale_type == _VF16 else value

    def block_words(self, block):
        """The block's vectors of 4 bytes per channel; signed bytes are made unsigned (+ 128)."""
        size = LANES * BLOCK * self.bits // 8
        first = self.b.mul(self.tile, self.blocks)
        base = self.at(self.words, (first, size), (block, size))
        words = [self.load(self.at(base, (_I64(i), 64)), _VI32) for i in range(self.bits)]
        if self.bits == 8:  # flip the top bit of each byte: + 128
            words = [self.b.xor(word, _constant(_VI32, -0x7F7F7F80)) for word in words]
        return words

    def build(self):
        """out[r, 16 channels] = sum over groups of scale * (codes . x) + minimum * sum(x)."""
        b = self.b
        sums = [cgutils.alloca_once(b, _VF32) for _ in range(self.rows)]
        for total in sums:
            b.store(_constant(_VF32, 0.0), total)
        with cgutils.for_range(b, self.groups) as group:
            scale = self.group_value(self.scale, group.index)
            low = None if self.minimum is None else self.group_value(self.minimum, group.index)
            with cgutils.for_range(b, self.per_group) as inner:
                block = b.add(b.mul(group.index, self.per_group), inner.index)
                self.multiply_block(block, scale, low, sums)
        for r, total in enumerate(sums):
            address = self.at(self.out, (self.ld, 4 * r))
            b.store(b.load(total), b.inttoptr(address, _VF32.as_pointer())).align = 4

    def place(self, r, block):
        """Index of row r's block among all rows' blocks."""
        return self.b.add(self.b.mul(self.blocks, _I64(r)), block)

    def multiply_block(self, block, scale, low, sums):
        raise NotImplementedError


class _Int8Tile(_Tile):
    """Inputs as int8 with one scale per row and block. The sums of a block are exact integers."""

    def multiply_block(self, block, scale, low, sums):
        b, words = self.b, self.block_words(block)
        if self.bits == 4:  # inputs 0-15 are the low halves of the bytes, 16-31 the high ones
            mask, four = _constant(_VI32, 0x0F0F0F0F), _constant(_VI32, 4)
            words = [b.and_(w, mask) for w in words] + [
                b.and_(b.lshr(w, four), mask) for w in words
            ]
        chains = 2 if self.rows == 1 else 1  # one row: two sums, whose instructions can overlap
        for r, total in enumerate(sums):
            place = self.place(r, block)
            x_scale = self.load(self.at(self.xs, (place, 4)), _F32)
            x_sum = self.load(self.at(self.xsum, (place, 4)), _I32)
            x = self.at(self.x, (place, BLOCK))
            parts = [_constant(_VI32, 0)] * chains
            if self.offset:
                parts[0] = self.splat(b.mul(x_sum, _I32(-self.offset)), _VI32)
            for i, word in enumerate(words):
                four_inputs = self.splat(self.load(self.at(x, (_I64(i), 4)), _I32), _VI32)
                parts[i % chains] = self.dot4(parts[i % chains], word, four_inputs)
            dot = b.sitofp(parts[0] if chains == 1 else b.add(*parts), _VF32)
            value = self.fma(dot, b.fmul(scale, self.splat(x_scale, _VF32)), b.load(total))
            if low is not None:
                x_total = b.fmul(x_scale, b.sitofp(x_sum, _F32))
                value = self.fma(low, self.splat(x_total, _VF32), value)
            b.store(value, total)

    def dot4(self, total, word, x):
        """total + four products of word's unsigned bytes and x's signed ones, per channel."""
        b = self.b
        if HAS_VNNI:
            kind = ir.FunctionType(_VI32, [_VI32] * 3)
            name = "llvm.x86.avx512.vpdpbusd.512"
            return b.call(cgutils.get_or_insert_function(b.module, kind, name), [total, word, x])
        for j in range(4):
            code = b.and_(b.lshr(word, _constant(_VI32, 8 * j)), _constant(_VI32, 255))
            signed = b.shl(x, _constant(_VI32, 24 - 8 * j))
            signed = b.ashr(signed, _constant(_VI32, 24))
            total = b.add(total, b.mul(code, signed))
        return total


class _FloatTile(_Tile):
    """Inputs as float32: codes are converted, and products are summed in float32."""

    def multiply_block(self, block, scale, low, sums):
        b, words = self.b, self.block_words(block)
        chains = 4 if self.rows == 1 else 1
        parts = [[_constant(_VF32, 0.0)] * chains for _ in sums]
        for i in range(8):
            for j in range(4):
                shift = 8 * j + (4 * (i // 4) if self.bits == 4 else 0)
                code = b.lshr(words[i % self.bits], _constant(_VI32, shift))
                code = b.and_(code, _constant(_VI32, 2**self.bits - 1))
                if self.offset:
                    code = b.sub(code, _constant(_VI32, self.offset))
                code = b.sitofp(code, _VF32)
                for r, row in enumerate(parts):
                    address = self.at(self.x, (self.place(r, block), 4 * BLOCK))
                    x = self.load(self.at(address, (_I64(4 * i + j), 4)), _F32)
                    row[j % chains] = self.fma(code, self.splat(x, _VF32), row[j % chains])
        for r, (total, row) in enumerate(zip(sums, parts, strict=True)):
            while len(row) > 1:
                row = [b.fadd(row[k], row[k + 1]) for k in range(0, len(row), 2)]
            value = self.fma(row[0], scale, b.load(total))
            if low is not None:
                x_total = self.load(self.at(self.xs, (self.place(r, block), 4)), _F32)
                value = self.fma(low, self.splat(x_total, _VF32), value)
            b.store(value, total)


def _tile_product(kind: type[_Tile], rows: int):
    @intrinsic
    def product(typingctx, words, scale, minimum, tile, groups, per_group, x, xs, xsum, out, ld):
        def generate(context, builder, signature, args):
            arrays = list(zip((words, scale, minimum), args[:3], strict=True))
            kind(builder, context, rows, *arrays, args[3:]).build()
            return context.get_dummy_value()

        return types.void(words, scale, minimum, *[types.int64] * 8), generate

    return product


_int8_many, _int8_few, _int8_one = (_tile_product(_Int8Tile, n) for n in (INT8_ROWS, FEW_ROWS, 1))
_float_many, _float_few, _float_one = (
    _tile_product(_FloatTile, n) for n in (FLOAT_ROWS, FEW_ROWS, 1)
)


@compiled(fastmath=_FASTMATH)
def _int8_tiles(words, scale, minimum, per_group, first, last, x, xs, xsum, out):
    """Multiplies all rows with tiles first .. last - 1, with as many rows per call as possible."""
    rows, groups, ld = x.shape[0], scale.shape[1], np.int64(out.shape[1])
    blocks = groups * per_group
    for tile in range(first, last):
        t = 0
        while t < rows:
            x_at = x.ctypes.data + t * blocks * BLOCK
            xs_at, sum_at = xs.ctypes.data + t * blocks * 4, xsum.ctypes.data + t * blocks * 4
            out_at = out.ctypes.data + (t * ld + tile * LANES) * 4
            if rows - t >= INT8_ROWS:
                _int8_many(
                    words, scale, minimum, tile, groups, per_group, x_at, xs_at, sum_at, out_at, ld
                )
                t += INT8_ROWS
            elif rows - t >= FEW_ROWS:
                _int8_few(
                    words, scale, minimum, tile, groups, per_group, x_at, xs_at, sum_at, out_at, ld
                )
                t += FEW_ROWS
            else:
                _int8_one(
                    words, scale, minimum, tile, groups, per_group, x_at, xs_at, sum_at, out_at, ld
                )
                t += 1


@compiled(fastmath=_FASTMATH)
def _float_tiles(words, scale, minimum, per_group, first, last, x, xs, out):
    """As `_int8_tiles`, for float32 inputs; `xs` has the sums of the inputs per block."""
    rows, groups, ld = x.shape[0], scale.shape[1], np.int64(out.shape[1])
    blocks = groups * per_group
    for tile in range(first, last):
        t = 0
        while t < rows:
            x_at, xs_at = x.ctypes.data + t * blocks * BLOCK * 4, xs.ctypes.data + t * blocks * 4
            out_at = out.ctypes.data + (t * ld + tile * LANES) * 4
            if rows - t >= FLOAT_ROWS:
                _float_many(
                    words, scale, minimum, tile, groups, per_group, x_at, xs_at, 0, out_at, ld
                )
                t += FLOAT_ROWS
            elif rows - t >= FEW_ROWS:
                _float_few(
                    words, scale, minimum, tile, groups, per_group, x_at, xs_at, 0, out_at, ld
                )
                t += FEW_ROWS
            else:
                _float_one(
                    words, scale, minimum, tile, groups, per_group, x_at, xs_at, 0, out_at, ld
                )
                t += 1


@compiled(fastmath=_FASTMATH)
def _round_row(x, quantized, scales, sums):
    """x [K] to int8: per block of 32 the scale max|x| / 127 and the sum of the integers."""
    for block in range(len(scales)):
        largest, total = np.float32(0), np.float32(0)
        for i in range(block * BLOCK, (block + 1) * BLOCK):
            largest = max(largest, abs(x[i]))
            total += x[i] * np.float32(0)  # 0, or NaN where an element is NaN or infinite
        inverse = np.float32(127) / largest if largest > _TINY else np.float32(0)
        if total != 0:
            inverse = np.float32(0)
        count = np.int32(0)
        for i in range(block * BLOCK, (block + 1) * BLOCK):
            rounded = np.int32(math.floor(x[i] * inverse + np.float32(0.5)))
            quantized[i] = rounded
            count += rounded
        scales[block], sums[block] = largest * np.float32(1 / 127) + total, count


@compiled(fastmath=_FASTMATH)
def _sum_row(x, sums):
    for block in range(len(sums)):
        total = np.float32(0)
        for i in range(block * BLOCK, (block + 1) * BLOCK):
            total += x[i]
        sums[block] = total


@compiled(parallel=PRANGE, fastmath=_FASTMATH)
def multiply_int8(words, scale, minimum, per_group, x, out, threads):
    """out [T, N] = x [T, K] W^T, where each block of 32 elements of x is first rounded to 8 bits.

    words, scale and minimum: the arrays of `lib.models.quantized.weight.QuantizedWeight`.
    x and out are float32, N and K padded to whole tiles and blocks; a group is `per_group` blocks.
    """
    rows, tiles = x.shape[0], scale.shape[0]
    blocks = x.shape[1] // BLOCK
    quantized = np.empty(x.shape, np.int8)
    scales = np.empty((rows, blocks), np.float32)
    sums = np.empty((rows, blocks), np.int32)
    for t in range(rows):
        _round_row(x[t], quantized[t], scales[t], sums[t])
    for share in prange(threads):
        first, last = tiles * share // threads, tiles * (share + 1) // threads
        _int8_tiles(words, scale, minimum, per_group, first, last, quantized, scales, sums, out)


@compiled(parallel=PRANGE, fastmath=_FASTMATH)
def multiply_float(words, scale, minimum, per_group, x, out, threads):
    """As `multiply_int8`, but x is not rounded: products and sums are in float32."""
    rows, tiles = x.shape[0], scale.shape[0]
    sums = np.empty((rows, x.shape[1] // BLOCK), np.float32)
    for t in range(rows):
        _sum_row(x[t], sums[t])
    for share in prange(threads):
        first, last = tiles * share // threads, tiles * (share + 1) // threads
        _float_tiles(words, scale, minimum, per_group, first, last, x, sums, out)
