"""Any float checkpoint, quantised while it is read. Introduced in chapter 11."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lib.models.quantized.fp8 import FP8Matrix, join, round_fp8
from lib.models.quantized.matrix import QuantizedMatrix, stack
from lib.models.quantized.rounding import round_blocks4, round_blocks8, round_channels

_ROWS = 4096  # rows of a matrix that are rounded together


class RoundedWeights:
    """Tensors of a float checkpoint by name; matrices are rounded to nearest.

    "int8": 8 bits, one scale per output channel. "int4": 4 bits in blocks of 32 inputs; embedding
    and head get 8 bits in blocks of 32, because errors of the head change the logits directly.
    "fp8": float8 with one scale per output channel; embedding and head stay float, for the same
    reason. Norms, biases and GPT-2's positions always stay float.
    """

    def __init__(
        self, tensors: dict[str, Tensor], quantization: str, is_transposed: Callable[[str], bool]
    ) -> None:
        self.tensors, self.quantization, self.is_transposed = tensors, quantization, is_transposed

    def matrix(self, name: str, is_embedding: bool = False) -> QuantizedMatrix | FP8Matrix | Tensor:
        """A weight [out, in], rounded. Raises ValueError for "int4" if 32 does not divide `in`."""
        weight = self.tensors[name]
        if self.is_transposed(name):
            weight = weight.T
        if self.quantization == "fp8":
            return weight if is_embedding else join([round_fp8(r) for r in weight.split(_ROWS)])
        return stack([self._round(rows, name, is_embedding) for rows in weight.split(_ROWS)])

    def _round(self, weight: Tensor, name: str, is_embedding: bool) -> QuantizedMatrix:
        if self.quantization == "int8":
            return round_channels(weight)
        return (round_blocks8 if is_embedding else round_blocks4)(weight, name)

    def vector(self, name: str) -> Tensor:
        return self.tensors[name]
