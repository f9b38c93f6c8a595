"""How much memory there is for K and V, after the weights and what a step needs. Introduced in chapter 2."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch

# The rest is for what a dry run does not show: fragmentation of the allocator, other processes, the reader's browser.
_SHARE = {"cuda": 0.9, "cpu": 0.5}
_NO_LIMIT = 2**60  # version 1 of the control groups writes a number near 2**63 for "no limit"


def available_bytes(device: torch.device, dry_run: Callable[[], object]) -> int:
    """Bytes that a KV cache may take on `device`: a share of what is free once a largest step has run.

    `dry_run` runs such a step. Its peak is set aside on CUDA, where running out is an error; the CPU's share is
    smaller instead.
    """
    if device.type != "cuda":
        dry_run()
        return int(free_memory() * _SHARE["cpu"])
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


def free_memory(root: Path = Path("/")) -> int:
    """Bytes of main memory that this process can still take: what the machine has free, or less in a container.

    A control group (of a container, or of a service) limits the memory of its processes, and each
    group above it does too. `root` is where /proc and /sys are.
    """
    return min([psutil.virtual_memory().available, *_left_in_groups(root)])


def _left_in_groups(root: Path) -> Iterator[int]:
    """Limit minus use of this process's control group and of those above it, where they have a limit.

    File pages count as used, but the kernel drops them before it refuses memory: they are free here,
    as they are in psutil's `available`.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            top, limit_file, used_file, prefix = "", "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            top, limit_file, used_file = "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            prefix = "total_"
        else:
            continue
        # Inside a container the group is often mounted as the top, whatever the path says.
        mount, inner = root / "sys/fs/cgroup" / top, Path(path.strip("/"))
        for group in (mount / inner, *(mount / parent for parent in inner.parents)):
            try:
                limit = (group / limit_file).read_text().strip()
                used = int((group / used_file).read_text())
            except (OSError, ValueError):
                continue
            if limit != "max" and int(limit) < _NO_LIMIT:
                yield max(0, int(limit) - used + _file_pages(group, prefix))


def _file_pages(group: Path, prefix: str) -> int:
    try:
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))


def gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
