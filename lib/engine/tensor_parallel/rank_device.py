"""The device of each rank. Introduced in chapter 13."""

from __future__ import annotations

import torch


def device_of(device: torch.device, rank: int) -> torch.device:
    """Device of rank `rank` on its machine: the CPU, which all share, or one GPU per rank from rank 0's on."""
    if device.type != "cuda":
        return device
    return torch.device("cuda", (device.index or 0) + rank)


def check_devices(device: torch.device, size: int) -> None:
    """Raise ValueError where this machine has too few GPUs for `size` ranks."""
    if device.type != "cuda":
        return
    there = torch.cuda.device_count() - (device.index or 0)
    if size > there:
        raise ValueError(
            f"tensor_parallel_size must be <= {there}, the CUDA devices from {str(device)!r} on, "
            f"got {size}"
        )
