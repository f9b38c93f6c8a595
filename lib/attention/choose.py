"""Chooses the attention over a KV cache: by the options, by the cache, and by what the device can run.

Introduced in chapter 11.
"""

from __future__ import annotations

import warnings

from lib.attention.contiguous import ContiguousAttention
from lib.attention.fused import fused_attention, why_not_fused
from lib.attention.gather import GatherAttention
from lib.cache.int8_kv_cache import Int8KVCache
from lib.cache.kv_cache import KVCache
from lib.core.attention import Attention
from lib.core.engine_options import EngineOptions
from lib.models.config import ModelConfig


def cached_attention(options: EngineOptions, kv_cache: KVCache, config: ModelConfig) -> Attention:
    """The attention over `kv_cache` that `options` name, for a model of shape `config`.

    attention "auto" is fused where it runs, else gather, with a warning. Raises ValueError, which
    says what is missing, for "fused" where it does not run.
    """
    if options.kv_cache == "contiguous":
        return ContiguousAttention(kv_cache)
    return _paged_attention(options, kv_cache, config)


def _paged_attention(options: EngineOptions, kv_cache: KVCache, config: ModelConfig) -> Attention:
    if options.attention == "gather":
        return GatherAttention(kv_cache)
    k, group = kv_cache.k, config.num_heads // config.num_kv_heads
    int8 = isinstance(kv_cache, Int8KVCache)
    problem = why_not_fused(k.device, kv_cache.dtype, kv_cache.block_size, k.shape[4], group)
    if int8 and k.device.type != "cpu":
        problem = ValueError(
            f"attention 'fused' on {k.device.type} reads a cache of floats: kv_cache_dtype must be "
            "'auto', got 'int8'"
        )
    if config.attention_softcap is not None:
        problem = ValueError(
            "attention 'fused' computes plain scores: attn_logit_softcapping must be None, "
            f"got {config.attention_softcap!r}"
        )
    if problem is not None and options.attention == "fused":
        raise problem
    if problem is not None:
        warnings.warn(
            f"attention 'auto' falls back to 'gather', which copies K and V at every step: {problem}",
            stacklevel=5,
        )
        return GatherAttention(kv_cache)
    if int8:
        # Imported here, as fused_attention does it: with it comes Numba.
        from lib.attention.int8_fused_cpu import Int8CpuFusedAttention

        return Int8CpuFusedAttention(kv_cache)
    return fused_attention(kv_cache, group)
