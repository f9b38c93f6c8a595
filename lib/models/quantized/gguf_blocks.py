"""Reads the blocks of a GGUF file (Q4_0, Q4_1, Q8_0) without converting them to floats.

Layouts: ggml-common.h of llama.cpp. A block holds 32 inputs of one output channel: the scale
(float16), for Q4_1 also the minimum (float16), then the codes. Q4_0 and Q4_1 have 16 bytes, with
inputs 0-15 in the low halves and 16-31 in the high ones; Q8_0 has 32 signed bytes.
Introduced in chapter 11.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.models.config import ModelConfig
from lib.models.gguf import dequantized, naming, read_gguf
from lib.models.gguf_families import without_offset
from lib.models.gguf_names import hf_name, interleaved_heads
from lib.models.quantized.matrix import QuantizedMatrix

FLOAT_TYPES = ("F32", "F16", "BF16")
BLOCK_TYPES = ("Q4_0", "Q4_1", "Q8_0")


class GGUFWeights:
    """Tensors of a GGUF file by the names that Hugging Face gives them, read one at a time.

    Raises ValueError, with the file's name, if tensors are missing or unexpected, have a
    shape other than in `shapes`, or a type that is neither in BLOCK_TYPES nor in FLOAT_TYPES.
    """

    def __init__(self, file: Path, config: ModelConfig, shapes: dict[str, tuple[int, ...]]) -> None:
        self.file, self.architecture = file, config.architecture
        self.heads = {
            "num_attention_heads": config.num_heads,
            "num_key_value_heads": config.num_kv_heads,
        }
        _, tensors = read_gguf(file)
        tensors.pop("rope_freqs.weight", None)  # in config.json, as rope_scaling
        with naming(file):
            self.items = {
                hf_name(name, self.architecture).removeprefix("model."): item
                for name, item in tensors.items()
            }
            _check(self.items, shapes)

    def matrix(self, name: str, is_embedding: bool = False) -> QuantizedMatrix | Tensor:
        """A weight matrix [out, in]: its blocks, or a float32 tensor if the file has floats."""
        item = self.items[name]
        heads = interleaved_heads(name, self.architecture)
        with naming(self.file):
            if item.tensor_type.name in FLOAT_TYPES:
                weight = dequantized(item)
                return weight if heads is None else weight[_order(len(weight), self.heads[heads])]
            matrix = read_blocks(item.data, item.tensor_type.name)
        rows = len(matrix.codes)
        return matrix if heads is None else matrix.reordered(_order(rows, self.heads[heads]))

    def vector(self, name: str) -> Tensor:
        """A norm or a bias as float32."""
        heads = interleaved_heads(name, self.architecture)
        with naming(self.file):
            values = without_offset(dequantized(self.items[name]), name, self.architecture)
        return values if heads is None else values[_order(len(values), self.heads[heads])]


def read_blocks(data: np.ndarray, kind: str) -> QuantizedMatrix:
    """The codes and scales of data [N, bytes of a row], blocks of type Q4_0, Q4_1 or Q8_0."""
    size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[kind]
    raw = torch.from_numpy(np.array(data)).view(len(data), -1, size)
    blocks = raw.shape[1]
    scale = raw[..., :2].contiguous().view(torch.float16).view(-1, blocks)
    if kind == "Q8_0":
        return QuantizedMatrix(8, raw[..., 2:].contiguous().view(torch.int8).flatten(1), scale)
    minimum = None
    if kind == "Q4_1":
        minimum = raw[..., 2:4].contiguous().view(torch.float16).view(-1, blocks)
    halves = raw[..., size - 16 :]
    codes = torch.cat((halves & 15, halves >> 4), dim=2).flatten(1)
    return QuantizedMatrix(4, codes, scale, minimum)


def _order(rows: int, heads: int) -> Tensor:
    """Index of the file's rows of q or k in Hugging Face's order.

    GGUF keeps rotated pairs side by side (2i, 2i + 1), Hugging Face half a head apart.
    """
    return torch.arange(rows).view(heads, rows // heads // 2, 2).transpose(1, 2).flatten()


def _check(items: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    if missing := sorted(shapes.keys() - items.keys()):
        raise ValueError(f"missing tensors: {', '.join(missing[:8])}")
    if extra := sorted(items.keys() - shapes.keys()):
        raise ValueError(f"unexpected tensors: {', '.join(extra[:8])}")
    for name, item in items.items():
        shape, kind = tuple(int(n) for n in reversed(item.shape)), item.tensor_type.name
        if shape != tuple(shapes[name]):
            raise ValueError(
                f"the tensor {item.name} is {list(shape)}, should be {list(shapes[name])}"
            )
        allowed = FLOAT_TYPES + (BLOCK_TYPES if len(shape) == 2 else ())
        if kind not in allowed:
            raise ValueError(
                f"the tensor {item.name} is of type {kind}, which cannot be run in place: "
                f"it must be one of {list(allowed)}"
            )
