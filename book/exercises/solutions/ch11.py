"""Chapter 11: 32 numbers as a Q8_0 block. A solution, and answers that are wrong, by what is wrong with them."""

import torch


def quantize8(block):
    scale = (block.abs().max() / 127).half()
    codes = (block / scale.float()).round().clamp(-127, 127).to(torch.int8)
    return scale.numpy().tobytes() + codes.numpy().tobytes()


def unrounded_scale(block):
    scale = block.abs().max() / 127
    codes = (block / scale).round().clamp(-127, 127).to(torch.int8)
    return scale.half().numpy().tobytes() + codes.numpy().tobytes()


def float32_scale(block):
    scale = block.abs().max() / 127
    codes = (block / scale).round().clamp(-127, 127).to(torch.int8)
    return scale.numpy().tobytes() + codes.numpy().tobytes()


WRONG = {
    "divided by the scale before its rounding": unrounded_scale,
    "the scale in four bytes": float32_scale,
}
