"""Fused attention on CUDA, a step as Triton launches: a store, then decode with its merge, and varlen if any sequence has a chunk.

Introduced in chapter 7.
"""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from lib.attention import triton_decode, triton_kernel, triton_varlen
from lib.cache.kv_cache import KVCache
from lib.core.batch import Batch

_PROGRAMS_PER_PROCESSOR = 4  # resident at once; enough to keep loads in flight
_MAX_SPLITS = 64
_TILE = 64  # keys in a tile of decode


class CudaFusedAttention:
    """Store this step's K and V, then attend to the cache's blocks where they lie; see `lib.core.attention.Attention`.

    Nothing here waits for the device or looks at its numbers.
    """

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.kv_heads, self.size = cache.k.shape[3:]
        self.columns = max(16, triton.next_power_of_2(self.size))
        self.scale = self.size**-0.5 * math.log2(math.e)
        device = cache.k.device
        processors = (
            torch.cuda.get_device_properties(device).multi_processor_count
            if device.type == "cuda"
            else 2
        )
        self.programs = processors * _PROGRAMS_PER_PROCESSOR

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, batch: Batch) -> Tensor:
        self._store(layer, k, v, batch)
        q, out = _flat_rows(q), torch.empty(q.shape, dtype=q.dtype, device=q.device)
        longest = max(batch.query_lens)
        if min(batch.query_lens) == 1:
            self._decode(layer, q, out, batch)
        if longest > 1:
            self._varlen(layer, q, out, batch, longest)
        return out

    def splits(self, batch: Batch) -> int:
        """Parts a sequence's keys are split into: a power of two, from the batch's shape alone, never from its lengths."""
        wanted = self.programs // (len(batch.query_lens) * self.kv_heads)
        useful = triton.cdiv(
            batch.block_table.shape[1] * batch.block_size, _TILE
        )  # tiles of the longest possible
        return 1 << (max(1, min(wanted, useful, _MAX_SPLITS)).bit_length() - 1)

    def _store(self, layer: int, k: Tensor, v: Tensor, batch: Batch) -> None:
        k, v, width = _flat_rows(k), _flat_rows(v), self.kv_heads * self.size
        triton_kernel.store[(k.shape[0],)](
            k,
            v,
            self.cache.k[layer],
            self.cache.v[layer],
            batch.slot_mapping,
            k.stride(0),
            v.stride(0),
            WIDTH=width,
            COLUMNS=triton.next_power_of_2(width),
        )

    def _decode(self, layer: int, q: Tensor, out: Tensor, batch: Batch) -> None:
        rows, heads, splits = len(batch.query_lens), q.shape[1], self.splits(batch)
        group = heads // self.kv_heads
        use_dot = group > (4 if q.dtype == torch.float32 else 1)
        states = torch.empty((2, rows, heads, splits), dtype=torch.float32, device=q.device)
        accs = torch.empty(
            (rows, heads, splits, self.size) if splits > 1 else 1,
            dtype=torch.float32,
            device=q.device,
        )
        triton_decode.decode[(rows, self.kv_heads, splits)](
            q,
            self.cache.k[layer],
            self.cache.v[layer],
            out,
            states[0],
            states[1],
            accs,
            batch.block_table,
            batch.seq_lens,
            batch.query_start_loc,
            self.scale,
            q.stride(0),
            batch.block_table.stride(0),
            splits,
            KV_HEADS=self.kv_heads,
            GROUP=group,
            SIZE=self.size,
            BLOCK_SIZE=self.cache.block_size,
            ROWS=_rows(group, use_dot),
            COLUMNS=self.columns,
            TILE=_TILE if use_dot else _TILE // 2,
            USE_DOT=use_dot,
            SPLIT=splits > 1,
            num_warps=4,
        )
        if splits > 1:
            triton_decode.merge[(rows, heads)](
                out,
                states[0],
                states[1],
                accs,
                batch.query_start_loc,
                splits,
                HEADS=heads,
                SIZE=self.size,
                SPLITS=splits,
                COLUMNS=self.columns,
                num_warps=2,
            )

    def _varlen(self, layer: int, q: Tensor, out: Tensor, batch: Batch, longest: int) -> None:
        heads = q.shape[1]
        full = q.dtype == torch.float32  # no tensor cores and twice the bytes: smaller tiles
        rows = min(32 if full else 64, max(16, triton.next_power_of_2(longest)))
        triton_varlen.varlen[(triton.cdiv(longest, rows), len(batch.query_lens), heads)](
            q,
            self.cache.k[layer],
            self.cache.v[layer],
            out,
            batch.block_table,
            batch.seq_lens,
            batch.query_start_loc,
            self.scale,
            q.stride(0),
            batch.block_table.stride(0),
            KV_HEADS=self.kv_heads,
            GROUP=heads // self.kv_heads,
            SIZE=self.size,
            BLOCK_SIZE=self.cache.block_size,
            ROWS=rows,
            COLUMNS=self.columns,
            TILE=32 if full else 64,
            num_warps=4 if self.columns <= 64 else 8,
        )


def _rows(group: int, use_dot: bool) -> int:
    return max(16 if use_dot else 1, triton.next_power_of_2(group))


def _flat_rows(x: Tensor) -> Tensor:
    """x [T, H, D] with the heads of a token next to each other; a view of a wider projection is, and is not copied."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
