"""Chunks of prompts, on CUDA: many queries per sequence, of different lengths, with all keys that the cache has of it.

FlashAttention (Dao et al. 2022; its second version's loop order, 2023) over a block table. Introduced in chapter 7.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lib.attention.triton_kernel import rows_of, slots_of


@triton.jit(do_not_specialize=["table", "seq_lens", "query_start_loc", "table_stride", "window"])
def varlen(
    q,
    keys,
    values,
    out,
    table,
    seq_lens,
    query_start_loc,
    scale,
    q_stride,
    table_stride,
    window,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
    MOST: tl.constexpr,
):
    """Program (query tile, row, query head): ROWS queries of the row with the keys up to the last
    query's position; `window`: how many of them a query sees, its own included.

    Rows with at most MOST queries are left to `decode`; tiles beyond the row's queries end at once.
    """
    query_tile, row, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(query_start_loc + row).to(tl.int64)
    num_queries = (tl.load(query_start_loc + row + 1) - start).to(tl.int32)
    if (num_queries <= MOST) | (query_tile * ROWS >= num_queries):
        return
    length = tl.load(seq_lens + row)
    queries = query_tile * ROWS + tl.arange(0, ROWS)
    columns, offsets = tl.arange(0, COLUMNS), tl.arange(0, TILE)
    own_positions = length - num_queries + queries
    mask = (queries[:, None] < num_queries) & (columns[None, :] < SIZE)
    at = head * SIZE + columns[None, :]
    query = tl.load(q + (start + queries[:, None]) * q_stride + at, mask=mask, other=0.0)
    # Keys that the tile's last query sees.
    seen = tl.minimum(length, length - num_queries + (query_tile + 1) * ROWS)
    table_row = table + row.to(tl.int64) * table_stride
    begin = tl.maximum(length - num_queries + query_tile * ROWS + 1 - window, 0) // TILE
    peak = tl.full([ROWS], -1e30, tl.float32)  # finite: a row may see no key of its first tile
    norm = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, COLUMNS], tl.float32)
    for tile in range(begin, tl.cdiv(seen, TILE)):
        positions = tile * TILE + offsets
        visible = positions < seen
        slots = slots_of(table_row, positions, visible, BLOCK_SIZE)
        key = rows_of(keys, slots, head // GROUP, visible, columns, KV_HEADS, SIZE)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        distance = own_positions[:, None] - positions[None, :]
        scores = tl.where((distance >= 0) & (distance < window), scores, float("-inf"))
        top = tl.maximum(peak, tl.max(scores, axis=1))
        p = tl.exp2(scores - top[:, None])
        shrink = tl.exp2(peak - top)
        norm = norm * shrink + tl.sum(p, axis=1)
        value = rows_of(values, slots, head // GROUP, visible, columns, KV_HEADS, SIZE)
        acc = acc * shrink[:, None] + tl.dot(p.to(value.dtype), value, input_precision="ieee")
        peak = top
    result = (acc / norm[:, None]).to(out.dtype.element_ty)
    to = out + (start + queries[:, None]) * (KV_HEADS * GROUP * SIZE) + at
    tl.store(to, result, mask=mask)
