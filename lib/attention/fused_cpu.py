"""What the Numba kernel needs from a step: arrays instead of tensors, and no sequence that SDPA does faster.

Introduced in chapter 7.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from lib.attention import numba_kernel
from lib.attention.base import attend, chunk_mask
from lib.attention.full import FullAttention
from lib.attention.gather import gather
from lib.cache.kv_cache import KVCache
from lib.engine.batch import Batch

# The kernel does one dot product at a time: right where memory is the limit, which a few queries share each time. With
# many queries arithmetic is the limit, and a matrix product does it faster, even after a copy.
_MOST_QUERIES = 16
_COST_OF_A_SHARE = 100  # below this much work (in plan's unit) waking another thread costs more than it saves


@dataclass
class _Plan:
    """How a step's sequences are attended; the same for every layer."""

    units: np.ndarray              # for the kernel: see numba_kernel.plan
    costs: np.ndarray
    table: np.ndarray
    chunks: list[tuple[int, int]]  # (row of the batch, its first token): more queries than the kernel is good at


def _plan(batch: Batch) -> _Plan:
    starts = batch.query_start_loc.numpy()
    units, costs = numba_kernel.plan(starts, batch.seq_lens.numpy(), _MOST_QUERIES)
    chunks = [(row, int(starts[row])) for row, n in enumerate(batch.query_lens) if n > _MOST_QUERIES]
    return _Plan(units, costs, batch.block_table.numpy(), chunks)


class CpuKernels:
    """See `lib.attention.fused.FusedAttention`."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self._full = FullAttention()
        self._keys, self._values = ([_array(layer.flatten(0, 1)) for layer in x] for x in (cache.k, cache.v))

    def store(self, layer: int, k: Tensor, v: Tensor, batch: Batch) -> None:
        self.cache.store(layer, k, v, batch.slot_mapping)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, batch: Batch) -> Tensor:
        if batch.query_lens == batch.kv_lens and max(batch.query_lens) > 1:  # all begin: their K and V are at hand
            return self._full(layer, q, k, v, batch)
        plan, out = batch.derive(_plan), torch.empty(q.shape, dtype=q.dtype)
        if len(plan.units):
            threads = min(torch.get_num_threads(), numba.get_num_threads())
            shares = max(1, min(threads, int(plan.costs[-1]) // _COST_OF_A_SHARE))
            numba_kernel.attend(_array(q.contiguous()), self._keys[layer], self._values[layer], plan.table,
                                self.cache.block_size, plan.units, plan.costs, shares, _array(out))
        for row, start in plan.chunks:
            n, length = batch.query_lens[row], batch.kv_lens[row]
            if n == length:  # a sequence that begins with this chunk: nothing of it is in the cache alone
                keys, values, mask = k[None, start:start + n], v[None, start:start + n], None
            else:
                table = batch.block_table[row:row + 1, :-(-length // batch.block_size)].long()
                keys, values = (gather(x[layer], table)[:, :length] for x in (self.cache.k, self.cache.v))
                mask = chunk_mask(n, length, q)
            out[start:start + n] = attend(q[None, start:start + n], keys, values, n, mask)[0]
        return out


def _array(x: Tensor) -> np.ndarray:
    """A view. NumPy has no bfloat16: its bits, as uint16."""
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()
