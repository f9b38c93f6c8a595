"""Products of few rows with packed weights, which are read where they lie.

A product of few rows takes at least the time to read its weights. The loop here reads them in the order of memory
(see `lib.models.packed_tiles`): for each input it multiplies the weights of 64 outputs, four AVX-512 registers, with
one number of each row. The sums stay in registers. The loop is generated as LLVM IR (LLVM's intermediate
representation), because Numba's code for a loop over 64 outputs keeps the sums in memory.

A weight comes as the address of its tiles; `like`, any array of float32 or of uint16 (bfloat16), says of which type
they are. All arithmetic is in float32. Introduced in chapter 8.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from lib.core.numba_cache import NAN_SAFE, PRANGE, compiled
from lib.core.vector_code import F32, I32, I64, VectorCode, filled

TILE, HALF_TILE = 64, 32  # outputs; threads divide a product in half tiles


def _tile_product(rows: int, outputs: int):
    """Intrinsic that multiplies `rows` rows of inputs with the weights of `outputs` outputs of one tile."""
    floats, integers = ir.VectorType(F32, outputs), ir.VectorType(I32, outputs)

    @intrinsic
    def product(typingctx, like, weights, x, x_stride, inputs, out, out_stride):
        """weights, x, out: addresses; strides: float32 elements per row."""
        pairs = like.dtype == types.uint16

        def generate(context, b, signature, args):
            weights_at, x, x_stride, inputs, out, out_stride = args[1:]
            code = VectorCode(b)
            sums = [cgutils.alloca_once(b, floats) for _ in range(rows)]
            for total in sums:
                b.store(filled(floats, 0.0), total)
            per_step = 2 if pairs else 1
            steps = b.udiv(inputs, I64(per_step))
            with cgutils.for_range(b, steps) as loop:
                # A pair of bfloat16 is as large as a float32.
                here = code.at(weights_at, (loop.index, 4 * TILE))
                if pairs:
                    word = code.load(here, integers)
                    even = b.shl(word, filled(integers, 16))
                    odd = b.and_(word, filled(integers, -(2**16)))
                    weights = [b.bitcast(even, floats), b.bitcast(odd, floats)]
                else:
                    weights = [code.load(here, floats)]
                for row, total in enumerate(sums):
                    first = code.at(x, (b.mul(I64(row), x_stride), 4), (loop.index, 4 * per_step))
                    for j, weight in enumerate(weights):
                        one = code.splat(code.load(b.add(first, I64(4 * j)), F32), floats)
                        b.store(code.fma(weight, one, b.load(total)), total)
            for row, total in enumerate(sums):
                code.store(b.load(total), code.at(out, (out_stride, 4 * row)))
            return context.get_dummy_value()

        return types.void(like, *[types.int64] * 6), generate

    return product


_tile_1, _tile_2, _tile_4 = (_tile_product(rows, TILE) for rows in (1, 2, 4))
_half_1, _half_2, _half_4 = (_tile_product(rows, HALF_TILE) for rows in (1, 2, 4))


@compiled(fastmath=NAN_SAFE)
def product_share(like, address, x, out, share, shares):
    """A thread's share of out [T, N] = x [T, K] W^T.

    x and out are float32; N and K are filled up to whole tiles of W, which lie at `address`.
    """
    rows, k, n = np.int64(x.shape[0]), np.int64(x.shape[1]), np.int64(out.shape[1])
    tile_bytes = k * TILE * np.int64(like.itemsize)
    halves = n // HALF_TILE
    half, end = halves * share // shares, halves * (share + 1) // shares
    while half < end:
        whole = half % 2 == 0 and half + 2 <= end
        w_at = address + (half // 2) * tile_bytes + (half % 2) * HALF_TILE * 4
        t = 0
        while t < rows:
            x_at = np.int64(x.ctypes.data + 4 * t * k)
            out_at = np.int64(out.ctypes.data + 4 * (t * n + half * HALF_TILE))
            if rows - t >= 4:
                if whole:
                    _tile_4(like, w_at, x_at, k, k, out_at, n)
                else:
                    _half_4(like, w_at, x_at, k, k, out_at, n)
                t += 4
            elif rows - t >= 2:
                if whole:
                    _tile_2(like, w_at, x_at, k, k, out_at, n)
                else:
                    _half_2(like, w_at, x_at, k, k, out_at, n)
                t += 2
            else:
                if whole:
                    _tile_1(like, w_at, x_at, k, k, out_at, n)
                else:
                    _half_1(like, w_at, x_at, k, k, out_at, n)
                t += 1
        half += 2 if whole else 1


@compiled(parallel=PRANGE, fastmath=NAN_SAFE)
def multiply_tiles(like, address, x, out, threads):
    """out [T, N] = x [T, K] W^T on `threads` threads; arguments as for `product_share`."""
    if threads == 1:  # an empty parallel loop would wake the other threads all the same
        product_share(like, address, x, out, 0, 1)
    else:
        for share in prange(threads):
            product_share(like, address, x, out, share, threads)
