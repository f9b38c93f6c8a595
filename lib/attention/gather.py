"""Attention over the paged cache by gathering: copy each sequence's blocks into one piece, then attend over the copy.

The copy is what paging costs until a kernel reads the blocks in place (chapter 7). Introduced in chapter 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lib.attention.full import FullAttention
from lib.attention.sdpa import attend, chunk_mask, length_mask
from lib.cache.kv_cache import KVCache
from lib.core.batch import Batch


@dataclass
class _Plan:
    """How a step's sequences are read; the same for every layer."""

    chunks: list[tuple[int, int]]  # (row of the batch, its first token): gathered one by one
    tokens: Tensor  # [R] the tokens of the sequences with one query, which are gathered together
    tables: Tensor  # [R, blocks] their block tables, padded with the null block
    mask: Tensor  # [R, 1, 1, blocks * block_size]


def _plan(batch: Batch, window: int | None) -> _Plan:
    decode = [row for row, n in enumerate(batch.query_lens) if n == 1]
    together = set(decode)
    starts = [0]
    for n in batch.query_lens:
        starts.append(starts[-1] + n)
    chunks = [(row, starts[row]) for row in range(len(batch.query_lens)) if row not in together]
    longest = max((batch.kv_lens[row] for row in decode), default=0)
    blocks = -(-longest // batch.block_size)
    # A step without chunks takes the batch's own tensors: it copies nothing more to the device.
    tokens, tables, seq_lens = batch.query_start_loc[:-1], batch.block_table, batch.seq_lens
    if chunks:
        rows = torch.tensor(decode, dtype=torch.long, device=tokens.device)
        tokens, tables, seq_lens = tokens[rows], tables[rows], seq_lens[rows]
    tables, first = tables[:, :blocks].long(), 0
    if window is not None and longest > window:
        tables, first = _visible_blocks(tables, seq_lens, window, batch.block_size)
    mask = length_mask(seq_lens, tables.shape[1] * batch.block_size, window, first)
    return _Plan(chunks, tokens.long(), tables, mask)


def _visible_blocks(
    tables: Tensor, seq_lens: Tensor, window: int, block_size: int
) -> tuple[Tensor, Tensor]:
    """The blocks of each table that hold the last `window` keys, [R, n], and their first position, [R, 1].

    Tables that end before the others repeat their last column, which the mask hides.
    """
    first = (seq_lens.long() - window).clamp(min=0) // block_size
    most = 1 + -(-(window - 1) // block_size)  # the window may begin with a block's last key
    columns = first[:, None] + torch.arange(min(most, tables.shape[1]), device=tables.device)
    visible = tables.gather(1, columns.clamp(max=tables.shape[1] - 1))
    return visible, first[:, None] * block_size


class GatherAttention:
    """Store this step's K and V, then gather blocks and attend."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self._full = FullAttention()

    def __call__(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        batch: Batch,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        self.cache.store(layer, k, v, batch.slot_mapping)
        if (
            batch.query_lens == batch.kv_lens
        ):  # all sequences begin in this step: their K and V are at hand
            k, v = self.cache.as_stored(layer, k, v, batch.slot_mapping)
            return self._full(layer, q, k, v, batch, window, softcap)
        plan = batch.derive(_plan, window)
        if not plan.chunks:
            return self._together(layer, q, plan, softcap)
        out = torch.empty_like(q)
        if len(plan.tokens):
            out[plan.tokens] = self._together(layer, q[plan.tokens], plan, softcap)
        for row, start in plan.chunks:
            n = batch.query_lens[row]
            keys, values, mask = gather_chunk(self.cache, layer, batch, row, q, window)
            query = q[None, start : start + n]
            out[start : start + n] = attend(query, keys, values, n, mask, softcap)[0]
        return out

    def _together(self, layer: int, q: Tensor, plan: _Plan, softcap: float | None) -> Tensor:
        """One query per sequence, q [R, Hq, D], in a single call."""
        keys, values = self.cache.read(layer, gather, plan.tables)
        return attend(q[:, None], keys, values, 1, plan.mask.to(q.dtype), softcap)[:, 0]


def gather_chunk(
    cache: KVCache, layer: int, batch: Batch, row: int, like: Tensor, window: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys and values [1, length, Hkv, D] of one sequence of the batch, and the mask of its queries.

    With `window`, without the blocks that none of the queries sees.
    """
    n, length, size = batch.query_lens[row], batch.kv_lens[row], batch.block_size
    hidden = 0 if window is None else max(0, length - n + 1 - window) // size
    table = batch.block_table[row : row + 1, hidden : -(-length // size)].long()
    length -= hidden * size
    keys, values = (x[:, :length] for x in cache.read(layer, gather, table))
    if n == length and (window is None or n <= window):
        return keys, values, None
    return keys, values, chunk_mask(n, length, like, window)


def gather(blocks: Tensor, tables: Tensor) -> Tensor:
    """Copy blocks [num_blocks, block_size, Hkv, D] in the order of tables [R, n].

    Returns [R, n * block_size, Hkv, D].
    """
    # Whole blocks: on a CPU several times as fast as blocks[tables].
    rows = blocks.index_select(0, tables.flatten())
    return rows.view(len(tables), -1, *blocks.shape[2:])
