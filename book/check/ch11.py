"""Chapter 11: reads the bytes as the engine reads a file, and compares with the engine's own rounding."""

from collections.abc import Callable

import numpy as np
import torch

from book.check import Wrong
from lib.models.quantized.gguf_blocks import read_blocks
from lib.models.quantized.rounding import round_blocks8

FUNCTION = "quantize8"


def check(answer: Callable[[torch.Tensor], bytes]) -> None:
    generator = torch.Generator().manual_seed(0)
    for case in range(50):
        block = torch.randn(32, generator=generator)
        raw = np.frombuffer(bytes(answer(block.clone())), np.uint8)
        if raw.size != 34:
            raise Wrong(f"A block has {raw.size} bytes, expected 34")
        got = read_blocks(raw[None], "Q8_0").dequantize()[0]
        expected = round_blocks8(block[None]).dequantize()[0]
        if not torch.equal(got, expected):
            i = int((got != expected).nonzero()[0])
            raise Wrong(
                f"Block {case}, number {i}: {block[i]:.6f} was stored as {got[i]:.6f}, "
                f"expected {expected[i]:.6f}"
            )
