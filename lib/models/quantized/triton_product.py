"""Products with quantised weights on CUDA: codes become floats in registers, then are multiplied.

Reads the same tiles as the CPU's kernel (`lib.models.quantized.weight`). Only the weights are
quantised: with few rows a product is limited by the bytes of the weights, of which 8 bits need
about a quarter of float32's and 4 bits about an eighth. Introduced in chapter 11.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Sizes of one program's part of the output. tl.dot needs at least 16 rows; larger programs spill
# registers on sm_75 and in float32.
ROWS, MANY_ROWS, OUTPUTS = 16, 32, 32


@triton.jit(do_not_specialize=["rows", "inputs", "outputs"])
def product(
    x,
    words,
    scale,
    minimum,
    out,
    rows,
    inputs,
    outputs,
    blocks,
    blocks_per_group,
    BITS: tl.constexpr,
    ZERO: tl.constexpr,
    HAS_MINIMUM: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """out [T, N] = x [T, inputs] W^T, block by block; the grid is (outputs, rows) in parts.

    words [tiles, blocks, BITS, 16, 4] bytes; scale, minimum [tiles, groups, 16]. Sums in float32.
    """
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    m = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, 32)
    tile, lane = (n // 16).to(tl.int64), n % 16
    in_tiles = n < (outputs + 15) // 16 * 16
    byte = k % (4 * BITS)  # 4 bits: input 16 + i is in the high half of the byte of input i
    place = (byte // 4)[:, None] * 64 + lane[None, :] * 4 + (byte % 4)[:, None]
    groups = blocks // blocks_per_group
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for block in range(blocks):
        first = (tile * blocks + block) * (64 * BITS)
        codes = tl.load(words + first[None, :] + place, mask=in_tiles[None, :], other=0)
        if BITS == 4:
            codes = (codes >> ((k // 16) * 4).to(tl.uint8)[:, None]) & 15
        at = (tile * groups + block // blocks_per_group) * 16 + lane
        s = tl.load(scale + at, mask=in_tiles, other=0.0).to(tl.float32)
        w = (codes.to(tl.float32) - ZERO) * s[None, :]
        if HAS_MINIMUM:
            w += tl.load(minimum + at, mask=in_tiles, other=0.0).to(tl.float32)[None, :]
        column = block * 32 + k
        inside = (m < rows)[:, None] & (column < inputs)[None, :]
        part = tl.load(
            x + m.to(tl.int64)[:, None] * inputs + column[None, :], mask=inside, other=0.0
        )
        total += tl.dot(part, w.to(part.dtype), input_precision="ieee")
    inside = (m < rows)[:, None] & (n < outputs)[None, :]
    tl.store(out + m.to(tl.int64)[:, None] * outputs + n[None, :], total, mask=inside)


def multiply(
    x: Tensor,
    words: Tensor,
    scale: Tensor,
    minimum: Tensor | None,
    bits: int,
    zero: int,
    blocks_per_group: int,
    outputs: int,
) -> Tensor:
    """x [T, K] W^T as float32 [T, N]; weights are rounded to x's type before the product."""
    rows, inputs = x.shape
    out = torch.empty(rows, outputs, dtype=torch.float32, device=x.device)
    size = ROWS if rows <= ROWS else MANY_ROWS
    grid = (triton.cdiv(outputs, OUTPUTS), triton.cdiv(rows, size))
    product[grid](
        x,
        words,
        scale,
        scale if minimum is None else minimum,
        out,
        rows,
        inputs,
        outputs,
        words.shape[1],
        blocks_per_group,
        BITS=bits,
        ZERO=zero,
        HAS_MINIMUM=minimum is not None,
        ROWS=size,
        OUTPUTS=OUTPUTS,
    )
    return out
