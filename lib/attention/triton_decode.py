"""A few queries per sequence, on CUDA: the keys are split among programs, whose results a second kernel merges.

With one program per sequence and K/V head, a batch of one would occupy a few of the GPU's processors. Splitting the keys
(flash-decoding, Dao et al. 2023) occupies all of them: each part has its own running softmax, and states merge.
Introduced in chapter 7.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lib.attention.triton_kernel import rows_of, slots_of


@triton.jit(
    do_not_specialize=[
        "table",
        "seq_lens",
        "query_start_loc",
        "table_stride",
        "splits",
        "window",
    ]
)
def decode(
    q,
    keys,
    values,
    out,
    peaks,
    norms,
    accs,
    table,
    seq_lens,
    query_start_loc,
    scale,
    q_stride,
    table_stride,
    splits,
    window,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Program (sequence, kv head, split): the head's GROUP query heads of all the sequence's
    queries, and the split's part of its keys.

    tl.dot multiplies at least 16 rows. One query has only GROUP of them, so up to ROWS // GROUP
    queries cost no more than one. Sequences with more are left to `varlen`.

    window: keys that a query sees, its own included; tiles before the first query's are not read.
    scale: D ** -0.5 * log2(e), since exp2 is what the hardware has. With one split the result goes
    to out [T, Hq, D], else the state goes to peaks and norms [B, Hkv, splits, ROWS] and to
    accs [B, Hkv, splits, ROWS, D].
    """
    sequence, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(query_start_loc + sequence).to(tl.int64)
    num_queries = (tl.load(query_start_loc + sequence + 1) - start).to(tl.int32)
    if num_queries > ROWS // GROUP:
        return
    length = tl.load(seq_lens + sequence)
    begin = tl.maximum(length - num_queries + 1 - window, 0) // TILE
    tiles = tl.cdiv(length, TILE) - begin
    first, last = begin + split * tiles // splits, begin + (split + 1) * tiles // splits

    row, columns, offsets = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, TILE)
    query_of_row = row // GROUP
    own_positions = length - num_queries + query_of_row
    mask = (query_of_row[:, None] < num_queries) & (columns[None, :] < SIZE)
    at = (head * GROUP + row % GROUP)[:, None] * SIZE + columns[None, :]
    tokens = start + query_of_row[:, None]
    query = tl.load(q + tokens * q_stride + at, mask=mask, other=0.0)
    table_row = table + sequence.to(tl.int64) * table_stride
    peak = tl.full([ROWS], -1e30, tl.float32)  # finite: a row may see no key of its first tile
    norm = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, COLUMNS], tl.float32)
    for tile in range(first, last):
        positions = tile * TILE + offsets
        slots = slots_of(table_row, positions, positions < length, BLOCK_SIZE)
        key = rows_of(keys, slots, head, positions < length, columns, KV_HEADS, SIZE)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        distance = own_positions[:, None] - positions[None, :]
        visible = (distance >= 0) & (distance < window)
        scores = tl.where(visible, scores, float("-inf"))
        top = tl.maximum(peak, tl.max(scores, axis=1))
        p = tl.exp2(scores - top[:, None])
        shrink = tl.exp2(peak - top)
        norm = norm * shrink + tl.sum(p, axis=1)
        value = rows_of(values, slots, head, positions < length, columns, KV_HEADS, SIZE)
        acc = acc * shrink[:, None] + tl.dot(p.to(value.dtype), value, input_precision="ieee")
        peak = top

    if splits == 1:
        norm = tl.where(norm > 0, norm, 1.0)  # padding of a captured graph may have no keys
        result = (acc / norm[:, None]).to(out.dtype.element_ty)
        tl.store(out + tokens * (KV_HEADS * GROUP * SIZE) + at, result, mask=mask)
    else:
        state = ((sequence.to(tl.int64) * KV_HEADS + head) * splits + split) * ROWS + row
        tl.store(peaks + state, peak, mask=query_of_row < num_queries)
        tl.store(norms + state, norm, mask=query_of_row < num_queries)
        tl.store(accs + state[:, None] * SIZE + columns[None, :], acc, mask=mask)


@triton.jit(do_not_specialize=["query_start_loc", "splits"])
def merge(
    out,
    peaks,
    norms,
    accs,
    query_start_loc,
    splits,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Program (sequence, query head, query): the states of its `splits` parts, PARTS at a time, to
    out [T, Hq, D]."""
    sequence, head, query = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(query_start_loc + sequence).to(tl.int64)
    num_queries = tl.load(query_start_loc + sequence + 1) - start
    if (num_queries > ROWS // GROUP) | (query >= num_queries):
        return
    columns = tl.arange(0, COLUMNS)
    states = (sequence.to(tl.int64) * KV_HEADS + head // GROUP) * splits
    row = query * GROUP + head % GROUP
    top = -1e30
    norm = 0.0
    acc = tl.zeros([COLUMNS], tl.float32)
    for first in range(0, splits, PARTS):
        part = first + tl.arange(0, PARTS)
        state = (states + part) * ROWS + row
        peak = tl.load(peaks + state, mask=part < splits, other=-1e30)
        higher = tl.maximum(top, tl.max(peak, axis=0))
        weight = tl.exp2(peak - higher)
        shrink = tl.exp2(top - higher)
        part_norm = tl.load(norms + state, mask=part < splits, other=0.0)  # 0: a part without keys
        norm = norm * shrink + tl.sum(weight * part_norm, axis=0)
        mask = (part[:, None] < splits) & (columns[None, :] < SIZE)
        part_acc = tl.load(accs + state[:, None] * SIZE + columns[None, :], mask=mask, other=0.0)
        acc = acc * shrink + tl.sum(weight[:, None] * part_acc, axis=0)
        top = higher
    result = acc / tl.where(norm > 0, norm, 1.0)  # 0 where a captured graph's padding has no keys
    at = ((start + query) * KV_HEADS * GROUP + head) * SIZE + columns
    tl.store(out + at, result.to(out.dtype.element_ty), mask=columns < SIZE)
