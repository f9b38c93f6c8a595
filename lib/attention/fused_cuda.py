"""Fused attention on CUDA, a step as Triton launches: a store, then decode with its merge, and varlen if any sequence has a chunk.

Introduced in chapter 7.
"""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from lib.attention import triton_decode, triton_kernel, triton_varlen
from lib.attention.fused import refuse_softcap
from lib.attention.triton_config import (
    PARTS,
    Gpu,
    Tiles,
    columns_of,
    decode_tiles,
    num_splits,
    varlen_tiles,
)
from lib.cache.kv_cache import KVCache
from lib.core.batch import Batch

NO_WINDOW = 2**31 - 1  # longer than any sequence


class CudaFusedAttention:
    """Store this step's K and V, then attend to the cache's blocks where they lie; see `lib.core.attention.Attention`.

    Nothing here waits for the device or looks at its numbers. `gpu` is the cache's device unless another is given.
    """

    def __init__(self, cache: KVCache, gpu: Gpu | None = None) -> None:
        self.cache = cache
        self.gpu = gpu or Gpu.of(cache.k.device)
        self.kv_heads, self.size = cache.k.shape[3:]
        self.columns = columns_of(self.size)
        self.scale = self.size**-0.5 * math.log2(math.e)

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
        window = NO_WINDOW if window is None else window
        self._store(layer, k, v, batch)
        q, out = _flat_rows(q), torch.empty(q.shape, dtype=q.dtype, device=q.device)
        tiles = decode_tiles(self.gpu, q.dtype, self.size)
        most = tiles.rows // (q.shape[1] // self.kv_heads)  # queries that decode takes
        few = [n for n in batch.query_lens if n <= most]
        if few:
            self._decode(layer, q, out, batch, tiles, max(few), window)
        if len(few) < len(batch.query_lens):
            self._varlen(layer, q, out, batch, most, window)
        return out

    def splits(self, batch: Batch, tiles: Tiles) -> int:
        """Parts that a sequence's keys are split into, from the batch's shape alone, never from its lengths."""
        units = len(batch.query_lens) * self.kv_heads
        longest = triton.cdiv(batch.block_table.shape[1] * batch.block_size, tiles.keys)
        return num_splits(self.gpu, tiles.programs_per_sm, units, longest)

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
            enable_fp_fusion=True,
        )

    def _decode(
        self,
        layer: int,
        q: Tensor,
        out: Tensor,
        batch: Batch,
        tiles: Tiles,
        longest: int,
        window: int,
    ) -> None:
        sequences, heads, splits = len(batch.query_lens), q.shape[1], self.splits(batch, tiles)
        shape = (sequences, self.kv_heads, splits, tiles.rows) if splits > 1 else (1,)
        # An allocation for each: parts of one would be aligned differently as `shape` changes, and Triton compiles a
        # kernel for each alignment of its pointers.
        peaks, norms = (torch.empty(shape, dtype=torch.float32, device=q.device) for _ in range(2))
        accs = torch.empty((*shape, self.size), dtype=torch.float32, device=q.device)
        sizes = {
            "KV_HEADS": self.kv_heads,
            "GROUP": heads // self.kv_heads,
            "SIZE": self.size,
            "ROWS": tiles.rows,
            "COLUMNS": self.columns,
        }
        triton_decode.decode[(sequences, self.kv_heads, splits)](
            q,
            self.cache.k[layer],
            self.cache.v[layer],
            out,
            peaks,
            norms,
            accs,
            batch.block_table,
            batch.seq_lens,
            batch.query_start_loc,
            self.scale,
            q.stride(0),
            batch.block_table.stride(0),
            splits,
            window,
            **sizes,
            BLOCK_SIZE=self.cache.block_size,
            TILE=tiles.keys,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            enable_fp_fusion=True,
        )
        if splits > 1:
            triton_decode.merge[(sequences, heads, longest)](
                out,
                peaks,
                norms,
                accs,
                batch.query_start_loc,
                splits,
                **sizes,
                PARTS=PARTS,
                num_warps=2,
                enable_fp_fusion=True,
            )

    def _varlen(
        self, layer: int, q: Tensor, out: Tensor, batch: Batch, most: int, window: int
    ) -> None:
        """The sequences with more than `most` queries."""
        heads, longest = q.shape[1], max(batch.query_lens)
        tiles = varlen_tiles(self.gpu, q.dtype, self.size)
        triton_varlen.varlen[(triton.cdiv(longest, tiles.rows), len(batch.query_lens), heads)](
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
            window,
            KV_HEADS=self.kv_heads,
            GROUP=heads // self.kv_heads,
            SIZE=self.size,
            BLOCK_SIZE=self.cache.block_size,
            ROWS=tiles.rows,
            COLUMNS=self.columns,
            TILE=tiles.keys,
            MOST=most,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            enable_fp_fusion=True,
        )


def _flat_rows(x: Tensor) -> Tensor:
    """x [T, H, D] with the heads of a token next to each other; a view of a wider projection is, and is not copied."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
