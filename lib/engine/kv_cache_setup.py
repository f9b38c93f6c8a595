"""Builds the KV cache of an engine, its manager, and the attention over it. Introduced in chapter 14."""

from __future__ import annotations

import torch

from lib.attention.choose import cached_attention
from lib.cache.allocate import allocate, kv_bytes_per_token
from lib.cache.block_manager import BlockManager
from lib.cache.kv_cache import KVCache
from lib.cache.manager import CacheManager
from lib.cache.prefix_cache import PrefixCachingBlockManager
from lib.cache.sliding_window import SlidingWindowBlockManager, SlidingWindowPrefixCache
from lib.cache.slot_manager import SlotManager
from lib.core.attention import Attention
from lib.core.engine_options import EngineOptions
from lib.engine.kv_cache_size import KVCacheSize, budget_bytes, contiguous_size, paged_size
from lib.engine.runner import ModelRunner
from lib.models.config import ModelConfig


def cache_size(
    runner: ModelRunner,
    options: EngineOptions,
    device: torch.device,
    dtype: torch.dtype,
    beside_per_token: int = 0,
    rows_per_sequence: int = 1,
) -> KVCacheSize:
    """The size of a cache of options.kv_cache, "contiguous" or "paged", for the runner's model.

    beside_per_token: bytes that a draft model, or other ranks, keep for each token in the same
    memory. rows_per_sequence: see `budget_bytes`. Raises ValueError where it does not fit.
    """
    config: ModelConfig = runner.model.config
    longest = options.max_model_len or config.max_position_embeddings
    per_token = kv_bytes_per_token(config, options.kv_cache_dtype, dtype) + beside_per_token

    def budget() -> int:
        return budget_bytes(runner, options, device, rows_per_sequence)

    size = contiguous_size if options.kv_cache == "contiguous" else paged_size
    return size(options, longest, per_token, budget)


def make_cache(
    config: ModelConfig,
    options: EngineOptions,
    size: KVCacheSize,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[KVCache, CacheManager, Attention]:
    """(the cache of a model of this config, its manager, the attention over it).

    Raises ValueError where the device has no room for it, or cannot run options.attention.
    """
    shape = size.num_blocks, size.block_size
    kv_cache = allocate(config, *shape, dtype, device, options.kv_cache_dtype)
    attention = cached_attention(options, kv_cache, config)
    return kv_cache, _manager(config, options, *shape), attention


def _manager(
    config: ModelConfig, options: EngineOptions, num_blocks: int, block_size: int
) -> CacheManager:
    if options.kv_cache == "contiguous":
        return SlotManager(num_blocks, block_size)
    prefix_caching = options.enable_prefix_caching
    if (window := config.sliding_window) is not None:
        sliding = SlidingWindowPrefixCache if prefix_caching else SlidingWindowBlockManager
        return sliding(num_blocks, block_size, window)
    paged = PrefixCachingBlockManager if prefix_caching else BlockManager
    return paged(num_blocks, block_size)
