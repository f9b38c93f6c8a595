"""Attention that reads the paged cache in place: Numba on a CPU, Triton on CUDA. Introduced in chapter 7.

Two ideas meet here. PagedAttention (Kwon et al. 2023) says where K and V lie: in blocks that a table names.
FlashAttention (Dao et al. 2022) says how to read them: once, tile by tile, with a running softmax, scores never stored.
"""

from __future__ import annotations

from importlib import import_module

import torch

from lib.attention.triton_config import Gpu, why_not_on
from lib.cache.kv_cache import KVCache
from lib.core.attention import Attention

MIN_TRITON_BLOCK = 16  # keys in a tile: tl.dot takes no smaller one
_NEWEST = 100  # capability that an answer for 'cuda' assumes on a machine without a GPU
_NEEDS = {"cpu": "numba", "cuda": "triton"}
_DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}


def why_not_fused(
    device: torch.device, dtype: torch.dtype, block_size: int, head_size: int = 64, group: int = 1
) -> Exception | None:
    """What keeps the fused kernels from running here: ImportError with what to install, ValueError, or None.

    `group` is the number of query heads per K/V head. On a GPU that is there, a first kernel is compiled and started:
    a RuntimeError says what Triton lacks, for example a C compiler.
    """
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
    if kind == "cpu":
        return None
    if block_size < MIN_TRITON_BLOCK:
        return ValueError(
            f"block_size must be >= {MIN_TRITON_BLOCK} for attention 'fused' on cuda, got {block_size}"
        )
    there = torch.cuda.is_available()
    capability = Gpu.of(device).capability if there else _NEWEST
    if (error := why_not_on(capability, dtype, head_size, group)) is not None:
        return error
    return _why_triton_fails(device) if there else None


def refuse_softcap(softcap: float | None) -> None:
    """Raise ValueError unless `softcap` is None: the kernels compute plain scores."""
    if softcap is not None:
        raise ValueError(f"softcap must be None for attention 'fused', got {softcap!r}")


def fused_attention(cache: KVCache, group: int = 1) -> Attention:
    """The attention that reads `cache` in place: CpuFusedAttention or CudaFusedAttention.

    `group`: query heads per K/V head. Raises the error that `why_not_fused` returns, if any.
    """
    k = cache.k
    error = why_not_fused(k.device, k.dtype, cache.block_size, k.shape[-1], group)
    if error is not None:
        raise error
    if k.device.type == "cpu":
        from lib.attention.fused_cpu import CpuFusedAttention

        return CpuFusedAttention(cache)
    from lib.attention.fused_cuda import CudaFusedAttention

    return CudaFusedAttention(cache)


def _why_triton_fails(device: torch.device) -> RuntimeError | None:
    """Triton compiles the launch code with the system's C compiler: without one, the first launch fails."""
    from lib.attention.triton_kernel import store

    x = torch.zeros(16, device=device)
    slots = torch.zeros(1, dtype=torch.int64, device=device)
    try:
        store[(1,)](x, x, x, x, slots, 16, 16, WIDTH=16, COLUMNS=16, enable_fp_fusion=True)
    except Exception as error:  # of a compiler, a linker, a driver: each raises its own
        first_line = (str(error) or repr(error)).splitlines()[0]
        return RuntimeError(
            f"attention 'fused' on cuda needs kernels that Triton can build; here it fails with "
            f"{type(error).__name__}: {first_line} (it needs a C compiler such as gcc, and Python's headers)"
        )
    return None
