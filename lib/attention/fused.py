"""Attention that reads the paged cache in place: Numba on a CPU, Triton on CUDA. Introduced in chapter 7.

Two ideas meet here. PagedAttention (Kwon et al. 2023) says where K and V lie: in blocks that a table names.
FlashAttention (Dao et al. 2022) says how to read them: once, tile by tile, with a running softmax, scores never stored.
"""

from __future__ import annotations

from importlib import import_module

import torch

from lib.cache.kv_cache import KVCache
from lib.core.attention import Attention

MIN_TRITON_BLOCK = 16  # keys in a tile: tl.dot takes no smaller one
_NEEDS = {"cpu": "numba", "cuda": "triton"}
_DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}


def why_not_fused(device: torch.device, dtype: torch.dtype, block_size: int) -> Exception | None:
    """What keeps the fused kernels from running here: ImportError with what to install, ValueError, or None."""
    kind = device.type
    if kind not in _NEEDS:
        return ValueError(f"attention 'fused' runs on devices {list(_NEEDS)}, got {kind!r}")
    package = _NEEDS[kind]
    try:
        import_module(package)
    except (
        ImportError
    ) as error:  # not there, or there and at odds with another package: it says which
        return ImportError(
            f"attention 'fused' on {kind} needs {package}: pip install {package} ({error})"
        )
    if dtype not in _DTYPES[kind]:
        names = [str(d).removeprefix("torch.") for d in _DTYPES[kind]]
        return ValueError(
            f"dtype must be one of {names} for attention 'fused' on {kind}, "
            f"got {str(dtype).removeprefix('torch.')}"
        )
    if kind == "cuda" and block_size < MIN_TRITON_BLOCK:
        return ValueError(
            f"block_size must be >= {MIN_TRITON_BLOCK} for attention 'fused' on cuda, got {block_size}"
        )
    return None


def fused_attention(cache: KVCache) -> Attention:
    """The attention that reads `cache` in place: CpuFusedAttention or CudaFusedAttention.

    Raises ImportError or ValueError where `why_not_fused` says so.
    """
    if (error := why_not_fused(cache.k.device, cache.k.dtype, cache.block_size)) is not None:
        raise error
    if cache.k.device.type == "cpu":
        from lib.attention.fused_cpu import CpuFusedAttention

        return CpuFusedAttention(cache)
    from lib.attention.fused_cuda import CudaFusedAttention

    return CudaFusedAttention(cache)
