"""Rounds weights to 8 or 4 bits: to the nearest code, without sample texts.

A scale per output channel: Dettmers et al. 2022 (LLM.int8()). Scales per block of 32 inputs: Q4_1
and Q8_0 of GGUF. Introduced in chapter 11.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.models.quantized.matrix import BLOCK, QuantizedMatrix


def round_channels(weight: Tensor) -> QuantizedMatrix:
    """weight [N, K] to 8 bits, symmetric, one float32 scale per output channel: max|w| / 127.

    K is padded with zeros to a whole number of blocks.
    """
    weight = weight.float()
    weight = F.pad(weight, (0, -weight.shape[1] % BLOCK))
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    # A scale of zero belongs to a channel of zeros; other scales have no lower limit.
    codes = (weight / torch.where(scale > 0, scale, 1.0)).round_().to(torch.int8)
    return QuantizedMatrix(8, codes, scale)


def round_blocks8(weight: Tensor, name: str = "weight") -> QuantizedMatrix:
    """weight [N, K] to 8 bits, symmetric, a float16 scale per block of 32 inputs (GGUF's Q8_0).

    Raises ValueError, with `name`, where K is not divisible by 32.
    """
    blocks = _blocks(weight, name)
    scale = _half(blocks.abs().amax(dim=2) / 127, name)
    divisor = torch.where(scale > 0, scale.float(), 1.0)[..., None]
    codes = (blocks / divisor).round_().clamp_(-127, 127).to(torch.int8)
    return QuantizedMatrix(8, codes.view(weight.shape), scale)


def round_blocks4(weight: Tensor, name: str = "weight") -> QuantizedMatrix:
    """weight [N, K] to 4 bits, asymmetric, float16 scale and minimum per block of 32 (GGUF's Q4_1).

    Raises ValueError, with `name`, where K is not divisible by 32.
    """
    blocks = _blocks(weight, name)
    low, high = blocks.aminmax(dim=2)
    minimum, scale = _half(low, name), _half((high - low) / 15, name)
    divisor = torch.where(scale > 0, scale.float(), 1.0)[..., None]
    codes = ((blocks - minimum.float()[..., None]) / divisor).round_().clamp_(0, 15)
    return QuantizedMatrix(4, codes.to(torch.uint8).view(weight.shape), scale, minimum)


def _blocks(weight: Tensor, name: str) -> Tensor:
    rows, inputs = weight.shape
    if inputs % BLOCK:
        raise ValueError(
            f"{name} has {inputs} inputs: they must be divisible by the group size {BLOCK}"
        )
    return weight.float().reshape(rows, inputs // BLOCK, BLOCK)


def _half(values: Tensor, name: str) -> Tensor:
    half = values.half()
    if not torch.isfinite(half).all():
        raise ValueError(f"{name} holds values beyond float16, in which its scales are kept")
    return half
