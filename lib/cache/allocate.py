"""Allocates the KV cache that `kv_cache_dtype` names, and counts its bytes. Introduced in chapter 11."""

from __future__ import annotations

import torch

from lib.cache.int8_kv_cache import Int8KVCache, int8_kv_bytes_per_token
from lib.cache.kv_cache import KVCache, kv_cache_bytes
from lib.cache.sizing import gib
from lib.models.config import ModelConfig


def kv_bytes_per_token(config: ModelConfig, kv_cache_dtype: str, dtype: torch.dtype) -> int:
    """Bytes that K and V of one token take in all layers."""
    if kv_cache_dtype == "int8":
        return int8_kv_bytes_per_token(config)
    return kv_cache_bytes(config, 1, dtype)


def allocate(
    config: ModelConfig,
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    kv_cache_dtype: str = "auto",
) -> KVCache:
    """A KV cache of zeros. Raises ValueError where the device has no room for it."""
    kind = Int8KVCache if kv_cache_dtype == "int8" else KVCache
    try:
        return kind(config, num_blocks, block_size, dtype=dtype, device=device)
    except (
        MemoryError,
        torch.OutOfMemoryError,
        RuntimeError,
        ValueError,
    ) as error:  # NumPy: "array is too big"
        needed = num_blocks * block_size * kv_bytes_per_token(config, kv_cache_dtype, dtype)
        raise ValueError(
            f"a KV cache of {num_blocks} x {block_size} tokens takes {gib(needed)}, "
            f"which {device} does not have: {str(error).splitlines()[0]}"
        ) from None
