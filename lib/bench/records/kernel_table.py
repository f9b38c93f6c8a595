"""The attention kernels' registers and shared memory, for GPUs that need not be there. Introduced in chapter 7.

`python -m lib.bench.records.kernel_table` writes the table that chapter 7 shows where it cannot be computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from lib.attention.triton_config import Gpu, decode_tiles, varlen_tiles
from lib.bench.measure.kernel_resources import MULTIPROCESSORS, compiled_launches
from lib.bench.paths import measurements_dir
from lib.bench.records.json_file import write_json
from lib.cache.kv_cache import KVCache
from lib.core.batch import Batch, Scheduled

HEADS, KV_HEADS, SIZE = 9, 3, 64  # SmolLM2's
PROCESSORS = {75: 40, 80: 108, 86: 72, 89: 58, 90: 132, 100: 148}  # by data sheet
_BLOCK = 16
_WORK = [(1, 3000), (100, 30)]  # (queries, tokens before them): keys that are split, and a chunk


def kernel_rows(capabilities: Iterable[int]) -> list[dict[str, Any]]:
    """One row per GPU, dtype and kernel (decode, varlen) of a layer's attention with SmolLM2's heads.

    A row has gpu, kernel, dtype, tile (queries x keys), registers (per thread), local_bytes (per thread), shared_bytes,
    programs_per_sm and limited_by. The half precision is the GPU's own. Needs what `why_not_compiled` says.
    """
    return [
        row
        for capability in capabilities
        for dtype in (torch.bfloat16 if capability >= 80 else torch.float16, torch.float32)
        for row in _rows(capability, dtype)
    ]


def _rows(capability: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    from lib.attention.fused_cuda import CudaFusedAttention

    gpu = Gpu(capability, PROCESSORS[capability])
    config = SimpleNamespace(num_layers=1, num_kv_heads=KV_HEADS, head_dim=SIZE)
    cache = KVCache(config, 2, _BLOCK, dtype=dtype, device="cpu")  # nothing is read or written
    attention = CudaFusedAttention(cache, gpu)
    q, k, v = torch.empty(sum(n for n, _ in _WORK), HEADS + 2 * KV_HEADS, SIZE, dtype=dtype).split(
        (HEADS, KV_HEADS, KV_HEADS), dim=1
    )
    kernels = compiled_launches(lambda: attention(0, q, k, v, _batch()), capability)
    tiles = {
        "decode": decode_tiles(gpu, dtype, SIZE),
        "varlen": varlen_tiles(gpu, dtype, SIZE),
    }
    return [
        {
            "gpu": MULTIPROCESSORS[capability].gpu,
            "kernel": kernel.kernel,
            "dtype": str(dtype).removeprefix("torch."),
            "tile": f"{tiles[kernel.kernel].rows} x {tiles[kernel.kernel].keys}",
            "registers": kernel.registers,
            "local_bytes": kernel.local_bytes,
            "shared_bytes": kernel.shared_bytes,
            "programs_per_sm": kernel.programs_per_sm,
            "limited_by": kernel.limited_by,
        }
        for kernel in kernels
        if kernel.kernel in tiles
    ]


def _batch() -> Batch:
    scheduled = []
    for queries, past in _WORK:
        request = SimpleNamespace(
            token_ids=[0] * (queries + past),
            num_computed_tokens=past,
            block_ids=[1] * -(-(queries + past) // _BLOCK),
        )
        scheduled.append(Scheduled(request, queries))
    return Batch.build(scheduled, _BLOCK, "cpu")


def table_path() -> Path:
    """The table's file."""
    return measurements_dir() / "reference" / "kernel_resources.json"


def main() -> None:
    """Writes the table for all architectures that `MULTIPROCESSORS` knows."""
    import triton

    rows = kernel_rows(MULTIPROCESSORS)
    source = f"compiled by Triton {triton.__version__} with its own ptxas, without a GPU"
    write_json(table_path(), {"source": source, "triton": triton.__version__, "rows": rows})


if __name__ == "__main__":
    main()
