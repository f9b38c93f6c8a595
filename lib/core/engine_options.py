"""The arguments of `LLM`, checked. Introduced in chapter 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_CHOICES = {
    "kv_cache": ("none", "contiguous", "paged"),
    "attention": ("auto", "gather", "fused"),
    "scheduler": ("continuous", "static"),
    "linear": ("plain", "auto", "packed"),
}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class EngineOptions:
    """What `LLM` was asked for; see there. Raises ValueError for what does not exist or does not go together."""

    kv_cache: str
    attention: str
    scheduler: str
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int | None
    block_size: int
    num_blocks: int | None
    kv_cache_memory_bytes: int | None
    linear: str = "auto"
    compile: bool = False
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {list(allowed)}, got {getattr(self, name)!r}"
                )
        for name in ("compile", "cuda_graphs"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.cuda_graphs and (self.kv_cache != "paged" or self.attention == "gather"):
            raise ValueError(
                "cuda_graphs needs kv_cache 'paged' and attention 'fused' on a CUDA device, "
                f"got kv_cache {self.kv_cache!r} and attention {self.attention!r}"
            )
        for name in (
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_model_len",
            "block_size",
            "num_blocks",
            "kv_cache_memory_bytes",
        ):
            value = getattr(self, name)
            optional = name in ("max_model_len", "num_blocks", "kv_cache_memory_bytes")
            if value is None and optional:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(
                    f"{name} must be an integer >= 1{' or None' if optional else ''}, got {value!r}"
                )
        if self.kv_cache != "paged":
            for name, value, default in (
                ("attention", self.attention, "auto"),
                ("num_blocks", self.num_blocks, None),
            ):
                if value != default:
                    raise ValueError(
                        f"{name} must be {default!r} unless kv_cache is 'paged', got {value!r}"
                    )
        if self.kv_cache == "none" and self.kv_cache_memory_bytes is not None:
            raise ValueError(
                f"kv_cache_memory_bytes must be None where kv_cache is 'none', "
                f"got {self.kv_cache_memory_bytes!r}"
            )
        if self.num_blocks is not None and self.kv_cache_memory_bytes is not None:
            raise ValueError(
                "num_blocks and kv_cache_memory_bytes both set the pool's size: give one, "
                f"got {self.num_blocks!r} and {self.kv_cache_memory_bytes!r}"
            )


def pick_device(device: str | torch.device) -> torch.device:
    """'auto' is CUDA where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    if chosen.type == "cuda" and (
        not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count()
    ):
        raise ValueError(
            f"device {device!r} is not there: this machine has {torch.cuda.device_count()} CUDA devices"
        )
    return chosen


def pick_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """'auto' is float32 on a CPU; on a GPU bfloat16, or float16 where bfloat16 is only emulated."""
    if dtype == "auto":
        if device.type == "cpu":
            return torch.float32
        return (
            torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
        )
    chosen = _DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if chosen not in _DTYPES.values():
        raise ValueError(f"dtype must be 'auto' or one of {list(_DTYPES)}, got {dtype!r}")
    return chosen
