"""The tensors that K and V are kept in between steps. Introduced in chapter 2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.models.config import ModelConfig


class KVCache:
    """K and V of all layers, in blocks of slots.

    `k[layer]`, `v[layer]`: [num_blocks, block_size, Hkv, D]. The token at position p of
    a sequence has slot block_table[p // block_size] * block_size + p % block_size.
    Chapter 2's contiguous cache has one block per sequence, chapter 4's paged cache
    small blocks that any sequence can own: the storage is the same.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.num_blocks, self.block_size, self.dtype = num_blocks, block_size, dtype
        block = (block_size, config.num_kv_heads, config.head_dim)
        shape = (config.num_layers, num_blocks, *block)
        self.k = lazy_zeros(shape, dtype, torch.device(device))
        self.v = lazy_zeros(shape, dtype, torch.device(device))
        # Views by slot, made once: on a CPU a view costs as much as a small copy.
        self._k_slots = [layer.flatten(0, 1) for layer in self.k]
        self._v_slots = [layer.flatten(0, 1) for layer in self.v]

    def store(self, layer: int, k: Tensor, v: Tensor, slot_mapping: Tensor) -> None:
        """Write this step's k and v [T, Hkv, D] to their slots [T]."""
        self._k_slots[layer].index_copy_(0, slot_mapping, k)
        self._v_slots[layer].index_copy_(0, slot_mapping, v)

    def read(self, layer: int, select: Callable[..., Tensor], *which: Any) -> tuple[Tensor, Tensor]:
        """What `select(blocks, *which)` takes of a layer's K and V."""
        return select(self.k[layer], *which), select(self.v[layer], *which)

    def as_stored(
        self, layer: int, k: Tensor, v: Tensor, slot_mapping: Tensor
    ) -> tuple[Tensor, Tensor]:
        """k and v, just stored, as later steps will read them: here the same."""
        return k, v

    def remove_non_finite(self, block_ids: list[int], num_tokens: int) -> None:
        """Set NaN and infinity to 0 in a sequence that gives its blocks back.

        A masked read multiplies what lies behind a sequence's end by 0, and 0 * NaN is
        NaN: it would reach the next owner of the block.
        """
        for x in (self.k, self.v):
            for number, block in enumerate(block_ids):
                written = max(0, num_tokens - number * self.block_size)
                x[:, block, :written].nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes


def kv_cache_bytes(config: ModelConfig, num_tokens: int, dtype: torch.dtype) -> int:
    """Bytes of a cache with room for `num_tokens` tokens."""
    return num_tokens * config.kv_bytes_per_token(dtype.itemsize)


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take main memory only when they are written."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # NumPy asks the system for zero pages; torch.zeros would write them all now.
    bits = {1: np.int8, 2: np.int16, 4: np.int32}[dtype.itemsize]
    return torch.from_numpy(np.zeros(shape, dtype=bits)).view(dtype)
