"""How the Triton kernels are launched on which GPU: sizes of tiles, warps, and the number of parts that keys are split into.

Plain arithmetic, without Triton: the kernels' resources under these sizes are what the ahead-of-time tests hold.
Introduced in chapter 7.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

PARTS = 16  # states that `merge` reads at a time
_LEAST_CAPABILITY = 75
_MOST_HEAD_SIZE = 128
_MOST_GROUP = 16
_MOST_SPLITS = 256
_FILLED = 0.8  # of the last wave: a few more splits would cost more in states than they gain


@dataclass(frozen=True)
class Gpu:
    """The device as the launches see it."""

    capability: int  # 90 is sm_90
    processors: int

    @classmethod
    def of(cls, device: torch.device) -> Gpu:
        properties = torch.cuda.get_device_properties(device)
        capability = 10 * properties.major + properties.minor
        return cls(capability, properties.multi_processor_count)


def why_not_on(
    capability: int, dtype: torch.dtype, head_size: int, group: int
) -> ValueError | None:
    """What the kernels do not support on a GPU of this capability, or None.

    Supported is what compiles for it without spilling registers; the ahead-of-time tests compile it. `group` is the
    number of query heads per K/V head.
    """
    name = str(dtype).removeprefix("torch.")
    if capability < _LEAST_CAPABILITY:
        why = f"a GPU of sm_{_LEAST_CAPABILITY} or later, this one is sm_{capability}"
    elif dtype == torch.bfloat16 and capability < 80:
        why = f"a GPU of sm_80 or later for dtype {name}, this one is sm_{capability}: take float16"
    elif not 1 <= head_size <= _MOST_HEAD_SIZE:
        why = f"a head size of at most {_MOST_HEAD_SIZE} on cuda, the model's is {head_size}"
    elif not 1 <= group <= _MOST_GROUP:
        why = f"at most {_MOST_GROUP} query heads per K/V head on cuda, the model has {group}"
    else:
        return None
    return ValueError(f"attention 'fused' needs {why}")


@dataclass(frozen=True)
class Tiles:
    """Sizes of one launch. `programs_per_sm`: at least so many programs are resident on a multiprocessor at a time."""

    rows: int  # of queries: the query heads of a group, or the queries of a chunk
    keys: int
    programs_per_sm: int
    num_warps: int = 4
    num_stages: int = 3  # tiles on their way from memory, from sm_80 on


def columns_of(size: int) -> int:
    """The head size, padded to what a tile can have: a power of two, at least 16."""
    return max(16, 1 << (size - 1).bit_length())


def decode_tiles(gpu: Gpu, dtype: torch.dtype, size: int) -> Tiles:
    """For sequences with few queries. 16 rows are the fewest that tl.dot multiplies."""
    wide = columns_of(size) > 64
    if _tensor_cores(gpu, dtype):
        return Tiles(16, 32 if wide else 64, programs_per_sm=4)
    return Tiles(16, 16, programs_per_sm=3 if wide else 4)


def varlen_tiles(gpu: Gpu, dtype: torch.dtype, size: int) -> Tiles:
    """For chunks of prompts."""
    wide = columns_of(size) > 64
    if _tensor_cores(gpu, dtype):
        return Tiles(64, 32 if wide else 64, programs_per_sm=2)
    return Tiles(32, 16 if wide or gpu.capability < 80 else 32, programs_per_sm=2)


def _tensor_cores(gpu: Gpu, dtype: torch.dtype) -> bool:
    """Whether Triton's tl.dot runs on tensor cores. Without them all factors of a product pass through registers, and
    tiles must be smaller. The T4 (sm_75) has tensor cores, for which Triton generates no code."""
    return dtype.itemsize == 2 and gpu.capability >= 80


def num_splits(gpu: Gpu, programs_per_sm: int, units: int, longest: int) -> int:
    """Parts that each sequence's keys are split into, for `units` = sequences x K/V heads.

    A GPU runs processors * programs_per_sm programs at a time, a wave. One program more than a wave
    takes as long as two waves. The result is the smallest number of splits whose waves are full to
    80 %, or the number whose waves are the fullest, as FlashAttention chooses it. `longest`: tiles
    of the longest possible sequence, since the host does not know the lengths.
    """
    wave = gpu.processors * programs_per_sm
    best, best_filled = 1, 0.0
    for splits in range(1, max(1, min(longest, _MOST_SPLITS)) + 1):
        waves = units * splits / wave
        filled = waves / -(-units * splits // wave)
        if filled > best_filled:
            best, best_filled = splits, filled
        if filled >= _FILLED:
            break
    return best
