"""Fused attention on a CPU over a cache of 8 bits. Introduced in chapter 11."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lib.attention import int8_kernel, int8_store, numba_kernel
from lib.attention.fused_cpu import CpuFusedAttention, CpuPlan, array_of
from lib.cache.int8_kv_cache import Int8KVCache


class Int8CpuFusedAttention(CpuFusedAttention):
    """`CpuFusedAttention` that reads codes and scales in place: no float copy of the cache."""

    def __init__(self, cache: Int8KVCache) -> None:
        super().__init__(cache)
        self._key_scales, self._value_scales = (
            [array_of(layer.flatten(0, 1)[..., 0]) for layer in x]
            for x in (cache.k_scale, cache.v_scale)
        )

    def _store(self, layer: int, k: Tensor, v: Tensor, slot_mapping: Tensor) -> None:
        int8_store.store(
            array_of(k), array_of(v), slot_mapping.numpy(),
            self._keys[layer], self._values[layer],
            self._key_scales[layer], self._value_scales[layer],
        )  # fmt: skip

    def _run(
        self, layer: int, q: np.ndarray, plan: CpuPlan, out: np.ndarray, window: int | None
    ) -> None:
        shares, tile, heads, size = plan.shares, numba_kernel.QUERY_TILE, q.shape[1], q.shape[2]
        peak, norm = np.empty((2, shares.num_states, tile, heads), np.float32)
        acc = np.empty((shares.num_states, tile, heads, size), np.float32)
        scaled = np.empty((len(shares.offsets) - 1, tile, heads, size), np.float32)
        int8_kernel.attend(
            q, self._keys[layer], self._values[layer],
            self._key_scales[layer], self._value_scales[layer],
            plan.table, self.cache.block_size,
            numba_kernel.NO_WINDOW if window is None else window,
            shares.pieces, shares.offsets, shares.cuts,
            out, peak, norm, acc, scaled,
        )  # fmt: skip
