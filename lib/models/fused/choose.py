"""Whether a model's layers are replaced by fused ones. Introduced in chapter 8."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import nn

_DTYPES = (torch.float32, torch.bfloat16)


def why_not_fused_layers(device: torch.device, dtype: torch.dtype) -> str | None:
    """What keeps the fused kernels from running here, or None."""
    if device.type != "cpu":
        return f"the fused layers are for the CPU, not for {device.type}"
    if dtype not in _DTYPES:
        name = str(dtype).removeprefix("torch.")
        return f"the fused layers are for float32 and bfloat16, not for {name}"
    try:
        import_module("numba")
    except ImportError as error:  # missing, or in conflict with a package that it names
        return f"the fused layers need numba: pip install numba ({error})"
    return None


def fuse_layers(model: nn.Module, linear: str) -> int:
    """Replace blocks of `model` in place, after `pack_linears`; returns how many it replaced.

    `linear`: "fused": ValueError if the kernels do not run here or no block has a fused form;
    "auto": none in these cases; any other value: none.
    """
    if linear not in ("fused", "auto"):
        return 0
    norm = next(model.parameters())
    if (problem := why_not_fused_layers(norm.device, norm.dtype)) is not None:
        if linear == "fused":
            raise ValueError(f"linear 'fused' cannot be had: {problem}")
        return 0
    # Imported here because it imports Numba, which other engines do not need.
    from lib.models.fused.layers import fuse_blocks

    fused = fuse_blocks(model)
    if linear == "fused" and fused == 0:
        raise ValueError(
            "linear 'fused' cannot be had: the fused layers are for GPT-2 and Llama, not for "
            f"{model.config.architecture}"
        )
    return fused


def has_fused_layers(model: nn.Module) -> bool:
    """Whether `fuse_layers` has replaced all blocks of `model`."""
    return all(getattr(block, "has_fused_kernels", False) for block in model.blocks)
