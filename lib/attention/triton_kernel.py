"""What the Triton kernels share: writing K and V to their slots, and finding a sequence's slots again.

Every kernel takes its grid and its scratch from host-side numbers alone and reads lengths and tables on the device: a CUDA
graph that has captured a launch replays it for any lengths. Introduced in chapter 7.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def slots_of(table_row, positions, visible, BLOCK_SIZE: tl.constexpr):
    """Where the keys at `positions` of a sequence lie, int64: a pool can have more elements than
    int32 counts."""
    blocks = tl.load(table_row + positions // BLOCK_SIZE, mask=visible, other=0).to(tl.int64)
    return blocks * BLOCK_SIZE + positions % BLOCK_SIZE


@triton.jit
def rows_of(cache, slots, head, visible, columns, KV_HEADS: tl.constexpr, SIZE: tl.constexpr):
    """K or V of one head, [keys, COLUMNS]. What is not visible is not read but 0: 0 * NaN in a
    free slot would be NaN."""
    at = (slots[:, None] * KV_HEADS + head) * SIZE + columns[None, :]
    return tl.load(cache + at, mask=visible[:, None] & (columns[None, :] < SIZE), other=0.0)


@triton.jit(do_not_specialize=["slot_mapping"])
def store(
    k, v, keys, values, slot_mapping, k_stride, v_stride, WIDTH: tl.constexpr, COLUMNS: tl.constexpr
):
    """One program per token: its WIDTH = Hkv * D numbers of K and of V to its slot. A slot < 0
    writes nothing."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token)
    if slot < 0:
        return
    columns = tl.arange(0, COLUMNS)
    mask = columns < WIDTH
    at = slot * WIDTH + columns
    tl.store(keys + at, tl.load(k + token * k_stride + columns, mask=mask), mask=mask)
    tl.store(values + at, tl.load(v + token * v_stride + columns, mask=mask), mask=mask)
