"""Fused attention on a CPU: what the Numba kernel needs from a step, and what PyTorch's attention does faster.

Introduced in chapter 7.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from lib.attention import numba_kernel
from lib.attention.full import FullAttention
from lib.attention.fused import refuse_softcap
from lib.attention.gather import gather_chunk
from lib.attention.sdpa import attend, chunk_mask
from lib.attention.work_partition import WorkPartition, partition_work
from lib.cache.kv_cache import KVCache
from lib.core.batch import Batch
from lib.core.numba_cache import start_threads

# The kernel multiplies one query with eight keys at a time: right where memory is the limit, which a few queries share
# each time. With many queries arithmetic is the limit, and a matrix product does it faster, even after a copy; but of a
# short sequence PyTorch's attention computes the half that the mask hides as well. Measured on an AMD EPYC, see chapter 7.
MOST_QUERIES = 32
SHORT = 256  # keys of a sequence up to which the kernel is faster for any number of queries


@dataclass
class CpuPlan:
    """How a step's sequences are attended; the same for every layer."""

    shares: WorkPartition  # for the kernel
    table: np.ndarray  # [B, max_blocks]
    chunks: list[
        tuple[int, int]
    ]  # (row of the batch, its first token): more queries than the kernel is good at


def most_queries(kv_lens: np.ndarray) -> np.ndarray:
    """Of sequences with so many keys: the most queries for which the kernel is faster."""
    return np.where(kv_lens <= SHORT, kv_lens, MOST_QUERIES)


def attention_plan(batch: Batch, window: int | None) -> CpuPlan:
    """To be asked for by `batch.derive`."""
    threads = min(torch.get_num_threads(), numba.get_num_threads())
    queries, keys = np.array(batch.query_lens), np.array(batch.kv_lens)
    most = most_queries(keys)
    shares = partition_work(queries, keys, most, threads, window)
    starts = np.cumsum([0, *batch.query_lens]).tolist()
    chunks = [(row, starts[row]) for row in np.flatnonzero(queries > most).tolist()]
    return CpuPlan(shares, batch.block_table.numpy(), chunks)


class CpuFusedAttention:
    """Store this step's K and V, then attend to the cache's blocks where they lie; see `lib.core.attention.Attention`."""

    def __init__(self, cache: KVCache) -> None:
        start_threads()
        self.cache = cache
        self._full = FullAttention()
        self._keys, self._values = (
            [array_of(layer.flatten(0, 1)) for layer in x] for x in (cache.k, cache.v)
        )

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
        refuse_softcap(softcap)
        self._store(layer, k, v, batch.slot_mapping)
        plan = batch.derive(attention_plan, window)
        if not len(plan.shares.pieces) and batch.query_lens == batch.kv_lens:
            # All sequences begin in this step, and none is short: their K and V are at hand.
            k, v = self.cache.as_stored(layer, k, v, batch.slot_mapping)
            return self._full(layer, q, k, v, batch, window)
        out = torch.empty(q.shape, dtype=q.dtype)
        if len(plan.shares.pieces):
            self._run(layer, array_of(q.contiguous()), plan, array_of(out), window)
        if plan.chunks:
            k, v = self.cache.as_stored(layer, k, v, batch.slot_mapping)
        for row, start in plan.chunks:
            n, length = batch.query_lens[row], batch.kv_lens[row]
            if n == length:  # it begins with this chunk: nothing of it is in the cache alone
                keys, values = k[None, start : start + n], v[None, start : start + n]
                limited = window is not None and n > window
                mask = chunk_mask(n, n, q, window) if limited else None
            else:
                keys, values, mask = gather_chunk(self.cache, layer, batch, row, q, window)
            out[start : start + n] = attend(q[None, start : start + n], keys, values, n, mask)[0]
        return out

    def _store(self, layer: int, k: Tensor, v: Tensor, slot_mapping: Tensor) -> None:
        self.cache.store(layer, k, v, slot_mapping)

    def _run(
        self, layer: int, q: np.ndarray, plan: CpuPlan, out: np.ndarray, window: int | None
    ) -> None:
        shares, tile, heads, size = plan.shares, numba_kernel.QUERY_TILE, q.shape[1], q.shape[2]
        peak, norm = np.empty((2, shares.num_states, tile, heads), np.float32)
        acc = np.empty((shares.num_states, tile, heads, size), np.float32)
        scaled = np.empty((len(shares.offsets) - 1, tile, heads, size), np.float32)
        numba_kernel.attend(
            q,
            self._keys[layer],
            self._values[layer],
            plan.table,
            self.cache.block_size,
            numba_kernel.NO_WINDOW if window is None else window,
            shares.pieces,
            shares.offsets,
            shares.cuts,
            out,
            peak,
            norm,
            acc,
            scaled,
        )


def array_of(x: Tensor) -> np.ndarray:
    """A view. NumPy has no bfloat16: its bits, as uint16."""
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()
