"""One query a sequence, on CUDA: the sequence's keys are split among programs, whose results a second kernel merges.

With one program a sequence and head, a batch of one would keep a handful of the GPU's processors busy. Splitting the keys
(flash-decoding, Dao et al. 2023) fills them all: each part has its own running softmax, and states merge.
Introduced in chapter 7.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lib.attention.triton_kernel import rows_of, slots_of


@triton.jit(do_not_specialize=["table_stride", "splits"])
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
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
    USE_DOT: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Program (row, kv head, split): the head's GROUP queries, padded to ROWS, with split's part
    of the row's keys.

    scale: D ** -0.5 * log2(e), since exp2 is what the hardware has. Rows with more than one query
    are left to `varlen`. Without SPLIT the result goes to out [T, Hq, D], else to peaks, norms
    [B, Hq, splits] and accs [B, Hq, splits, D].
    """
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    token = tl.load(query_start_loc + row).to(tl.int64)
    if tl.load(query_start_loc + row + 1) - token != 1:
        return
    length = tl.load(seq_lens + row)
    tiles = tl.cdiv(length, TILE)
    share = tl.cdiv(tiles, splits)
    first = split * share
    last = tl.minimum(first + share, tiles)

    group, columns, offsets = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, TILE)
    at = (head * GROUP + group)[:, None] * SIZE + columns[None, :]
    mask = (group[:, None] < GROUP) & (columns[None, :] < SIZE)
    query = tl.load(q + token * q_stride + at, mask=mask, other=0.0)
    table_row = table + row.to(tl.int64) * table_stride
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    norm = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, COLUMNS], tl.float32)
    for tile in range(first, last):
        positions = tile * TILE + offsets
        visible = positions < length
        slots = slots_of(table_row, positions, visible, BLOCK_SIZE)
        key = rows_of(keys, slots, head, visible, columns, KV_HEADS, SIZE)
        value = rows_of(values, slots, head, visible, columns, KV_HEADS, SIZE)
        if USE_DOT:
            scores = tl.dot(query, tl.trans(key), input_precision="ieee")
        else:  # tl.dot's 16 rows for one or two queries would be mostly padding
            products = query.to(tl.float32)[:, None, :] * key.to(tl.float32)[None, :, :]
            scores = tl.sum(products, axis=2)
        scores = tl.where(visible[None, :], scores * scale, float("-inf"))
        top = tl.maximum(peak, tl.max(scores, axis=1))
        p = tl.exp2(scores - top[:, None])
        shrink = tl.exp2(peak - top)
        norm = norm * shrink + tl.sum(p, axis=1)
        acc = acc * shrink[:, None]
        if USE_DOT:
            acc += tl.dot(p.to(value.dtype), value, input_precision="ieee")
        else:
            acc += tl.sum(p[:, :, None] * value.to(tl.float32)[None, :, :], axis=1)
        peak = top

    if SPLIT:
        heads = (row.to(tl.int64) * KV_HEADS + head) * GROUP + group
        state = heads * splits + split
        tl.store(peaks + state, peak, mask=group < GROUP)
        tl.store(norms + state, norm, mask=group < GROUP)
        tl.store(accs + state[:, None] * SIZE + columns[None, :], acc, mask=mask)
    else:
        norm = tl.where(norm > 0, norm, 1.0)  # padding of a captured graph may have no keys
        result = (acc / norm[:, None]).to(out.dtype.element_ty)
        tl.store(out + token * (KV_HEADS * GROUP * SIZE) + at, result, mask=mask)


@triton.jit(do_not_specialize=["splits"])
def merge(
    out,
    peaks,
    norms,
    accs,
    query_start_loc,
    splits,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    SPLITS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Program (row, query head): the states of its `splits` parts, padded to SPLITS, to out
    [T, Hq, D]."""
    row, head = tl.program_id(0), tl.program_id(1)
    token = tl.load(query_start_loc + row).to(tl.int64)
    if tl.load(query_start_loc + row + 1) - token != 1:
        return
    split, columns = tl.arange(0, SPLITS), tl.arange(0, COLUMNS)
    state = (row.to(tl.int64) * HEADS + head) * splits + split
    peak = tl.load(peaks + state, mask=split < splits, other=float("-inf"))
    top = tl.maximum(tl.max(peak, axis=0), -1e30)
    weight = tl.exp2(peak - top)  # 0 for a part without keys
    norm = tl.sum(weight * tl.load(norms + state, mask=split < splits, other=0.0), axis=0)
    mask = (split[:, None] < splits) & (columns[None, :] < SIZE)
    acc = tl.load(accs + state[:, None] * SIZE + columns[None, :], mask=mask, other=0.0)
    result = tl.sum(weight[:, None] * acc, axis=0) / tl.where(norm > 0, norm, 1.0)
    at = (token * HEADS + head) * SIZE + columns
    tl.store(out + at, result.to(out.dtype.element_ty), mask=columns < SIZE)
