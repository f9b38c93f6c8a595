"""One rank's part of quantised weights, divided along whole groups. Introduced in chapter 13."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lib.models.parallel.shard import Part, Shard, take
from lib.models.quantized.fill import Weights
from lib.models.quantized.fp8 import FP8Matrix
from lib.models.quantized.matrix import BLOCK, QuantizedMatrix


class ShardedWeights:
    """A checkpoint's tensors as `lib.models.quantized.fill` asks for them, cut down to one rank's part.

    A matrix is read (and rounded) as a whole and then cut, one at a time: the codes are those of the
    whole model's, so that all ranks together compute the same products.
    """

    def __init__(self, weights: Weights, shard: Shard) -> None:
        self.weights, self.shard = weights, shard

    def matrix(self, name: str, is_embedding: bool = False) -> QuantizedMatrix | Tensor:
        """Raises ValueError, with the name, where a group of inputs would be cut, and for FP8.

        FP8 has one scale for all inputs of an activation, which a rank with some of them does not know.
        """
        part = self.shard.part_of(name.removesuffix(".weight"))
        whole = self.weights.matrix(name, is_embedding)
        if isinstance(whole, Tensor):
            return take(whole, part)
        if isinstance(whole, FP8Matrix):
            raise ValueError(
                f"tensor_parallel_size must be 1 with weights in FP8, as {name} has them, "
                f"got {self.shard.size}"
            )
        return take_quantized(whole, part, name)

    def vector(self, name: str) -> Tensor:
        return take(self.weights.vector(name), self.shard.part_of(name.rpartition(".")[0]))


def take_quantized(matrix: QuantizedMatrix, part: Part, name: str = "weight") -> QuantizedMatrix:
    """A copy of the part. Inputs are divided between groups, or, if a row is one group, between blocks of 32.

    Raises ValueError, with `name`, for a boundary elsewhere.
    """
    rows = Part(rows=part.rows)
    fields = (matrix.codes, matrix.scale, matrix.minimum)
    codes, scale, minimum = (None if field is None else take(field, rows) for field in fields)
    if (columns := part.columns) is not None:
        one_group = scale.shape[1] == 1
        unit = BLOCK if one_group else matrix.group_size
        at_end = codes.shape[1] - columns.stop < unit  # where a row is padded to whole blocks
        if columns.start % unit or (columns.stop % unit and not at_end):
            raise ValueError(
                f"tensor_parallel_size cuts {name} at inputs {columns.start} to {columns.stop}, "
                f"which must be multiples of {unit}, the inputs that share a scale: choose "
                "another tensor_parallel_size or quantization"
            )
        codes = codes[:, columns.start : columns.stop]
        codes = F.pad(codes, (0, -codes.shape[1] % BLOCK))
        if not one_group:
            groups = slice(columns.start // unit, columns.stop // unit)
            scale = scale[:, groups]
            minimum = None if minimum is None else minimum[:, groups]
    minimum = None if minimum is None else minimum.clone()
    return QuantizedMatrix(matrix.bits, codes.clone(), scale.clone(), minimum)
