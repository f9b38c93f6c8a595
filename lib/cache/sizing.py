"""How much memory there is for K and V, after the weights and what a step needs. Introduced in chapter 2."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import torch

# The rest is for what a dry run does not show: fragmentation of the allocator, other processes, the reader's browser.
_SHARE = {"cuda": 0.9, "cpu": 0.5}


def available_bytes(device: torch.device, dry_run: Callable[[], object]) -> int:
    """Bytes that a KV cache may take on `device`: a share of what is free once a largest step has run.

    `dry_run` runs such a step. Its peak is set aside on CUDA, where running out is an error; the CPU's share is
    smaller instead.
    """
    if device.type != "cuda":
        dry_run()
        return int(psutil.virtual_memory().available * _SHARE["cpu"])
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    dry_run()
    torch.cuda.synchronize(device)
    activations = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return max(0, int(free - activations - (1 - _SHARE["cuda"]) * total))


def gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
