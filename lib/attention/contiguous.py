"""Attention over the contiguous cache: K and V of a sequence lie in one piece and are read where they lie.

Introduced in chapter 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lib.attention.full import FullAttention
from lib.attention.sdpa import attend, chunk_mask, length_mask
from lib.cache.kv_cache import KVCache
from lib.core.batch import Batch

# Decoding sequences are read as one rectangle of neighbouring slots while at least this share of its rows is theirs.
_MIN_DENSITY = 0.5


@dataclass
class ContiguousPlan:
    """How a step's sequences are read; the same for every layer."""

    chunks: list[tuple[int, int]]  # (row of the batch, its first token): read one by one
    first: int  # the rectangle: slots first..last-1, positions begin..length-1
    last: int
    begin: int
    length: int
    tokens: Tensor  # [R] the tokens of the sequences that are read together
    places: Tensor  # [R] their rows in the rectangle
    queries: Tensor  # [last-first] the token whose query stands in each row; in a free slot's, any
    in_order: bool  # the rectangle's rows are the batch's tokens: nothing to rearrange
    mask: Tensor | None  # [last-first, 1, 1, length-begin]; None where nothing is hidden


def _plan(batch: Batch, window: int | None) -> ContiguousPlan:
    starts = [0]
    for n in batch.query_lens:
        starts.append(starts[-1] + n)
    decode = [row for row, n in enumerate(batch.query_lens) if n == 1]
    slots = [batch.block_ids[row][0] for row in decode]
    if decode and len(decode) < _MIN_DENSITY * (max(slots) + 1 - min(slots)):
        decode, slots = [], []
    together = set(decode)
    chunks = [(row, starts[row]) for row in range(len(batch.query_lens)) if row not in together]
    first, last = min(slots, default=0), max(slots, default=-1) + 1
    lengths = [batch.kv_lens[row] for row in decode]
    length, shortest = max(lengths, default=0), min(lengths, default=0)
    begin = 0 if window is None else max(0, shortest - window)  # what no window reaches is not read
    nothing_hidden = len(decode) == last - first and shortest == length
    # What follows comes from the batch's tensors: a decode step copies nothing more to the device.
    fields = batch.query_start_loc[:-1], batch.seq_lens, batch.block_table[:, 0]
    if chunks:
        device = fields[0].device
        rows = torch.tensor(decode, dtype=torch.long, device=device) if decode else slice(0)
        fields = tuple(x[rows] for x in fields)
    tokens, seq_lens, places = (x.long() for x in fields)
    places = places - first
    queries, row_lengths = torch.zeros((2, last - first), dtype=torch.long, device=tokens.device)
    queries.index_copy_(0, places, tokens)
    row_lengths.index_copy_(0, places, seq_lens)
    return ContiguousPlan(
        chunks,
        first,
        last,
        begin,
        length,
        tokens,
        places,
        queries,
        in_order=not chunks and slots == list(range(first, last)),
        mask=None if nothing_hidden else length_mask(row_lengths, length - begin, window, begin),
    )


def _view(blocks: Tensor, first: int, last: int, begin: int, end: int) -> Tensor:
    """Tokens begin .. end - 1 of slots first .. last - 1."""
    return blocks[first:last, begin:end]


class ContiguousAttention:
    """Store this step's K and V, then attend over views of the cache: what is read is never copied."""

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
            return self._rectangle(layer, q, plan, softcap)
        out = torch.empty_like(q)
        if plan.last > plan.first:
            out[plan.tokens] = self._rectangle(layer, q, plan, softcap)
        for row, start in plan.chunks:
            n, length, slot = batch.query_lens[row], batch.kv_lens[row], batch.block_ids[row][0]
            begin = 0 if window is None else max(0, length - n + 1 - window)
            keys, values = self.cache.read(layer, _view, slot, slot + 1, begin, length)
            whole = n == length and (window is None or n <= window)
            mask = None if n == 1 or whole else chunk_mask(n, length - begin, q, window)
            query = q[None, start : start + n]
            out[start : start + n] = attend(query, keys, values, n, mask, softcap)[0]
        return out

    def _rectangle(
        self, layer: int, q: Tensor, plan: ContiguousPlan, softcap: float | None
    ) -> Tensor:
        """One query per sequence, in a single call: other slots and the tails of shorter sequences are masked."""
        keys, values = self.cache.read(layer, _view, plan.first, plan.last, plan.begin, plan.length)
        query = q if plan.in_order else q[plan.queries]
        mask = None if plan.mask is None else plan.mask.to(q.dtype)
        out = attend(query[:, None], keys, values, 1, mask, softcap)[:, 0]
        return out if plan.in_order else out[plan.places]
