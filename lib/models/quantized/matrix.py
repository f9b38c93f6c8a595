"""A weight matrix as integer codes with a scale per group, in the order of the checkpoint.

Introduced in chapter 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 32  # inputs of a block in a GGUF file; a group is a whole number of them


@dataclass(frozen=True)
class QuantizedMatrix:
    """w[n, k] = scale[n, g] * (codes[n, k] - zero) + minimum[n, g], where g = k // group_size.

    codes [N, K]: int8 for 8 bits (zero is 0), uint8 of 0..15 for 4 bits (zero is 8 without a
    minimum and 0 with one). scale [N, K / group_size]: float16 or float32. minimum: None, which
    counts as 0, or of the scale's shape and type. Raises ValueError for other types and shapes.
    """

    bits: int
    codes: Tensor
    scale: Tensor
    minimum: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.bits, self.codes.dtype) not in ((4, torch.uint8), (8, torch.int8)):
            raise ValueError(
                f"bits must be 4 with uint8 codes or 8 with int8 codes, "
                f"got {self.bits} and {self.codes.dtype}"
            )
        rows, inputs = self.codes.shape
        groups = self.scale.shape[1]
        if self.scale.shape[0] != rows or inputs % groups or self.group_size % BLOCK:
            raise ValueError(
                f"scale must be [{rows}, groups] with groups of a multiple of {BLOCK} inputs, "
                f"got {list(self.scale.shape)} for codes {list(self.codes.shape)}"
            )

        low = self.minimum
        if low is not None and (low.shape, low.dtype) != (self.scale.shape, self.scale.dtype):
            raise ValueError(
                f"minimum must have the scale's shape {list(self.scale.shape)} and type "
                f"{self.scale.dtype}, got {list(low.shape)} and {low.dtype}"
            )

    @property
    def group_size(self) -> int:
        return self.codes.shape[1] // self.scale.shape[1]

    @property
    def kind(self) -> tuple[int, torch.dtype, int, bool]:
        """(bits, scale's type, group size, has a minimum): `stack` joins matrices of one kind."""
        return self.bits, self.scale.dtype, self.group_size, self.minimum is not None

    def dequantize(self) -> Tensor:
        """float32 [N, K]."""
        zero = 8.0 if self.bits == 4 and self.minimum is None else 0.0
        rows, groups = self.scale.shape
        codes = self.codes.float().sub_(zero).view(rows, groups, -1)
        values = codes * self.scale.float()[..., None]
        if self.minimum is not None:
            values += self.minimum.float()[..., None]
        return values.view(rows, -1)

    def reordered(self, order: Tensor) -> QuantizedMatrix:
        """The matrix whose row i is row order[i] of this one; order is [N]."""
        minimum = None if self.minimum is None else self.minimum[order]
        return QuantizedMatrix(self.bits, self.codes[order], self.scale[order], minimum)


def stack(matrices: Sequence[QuantizedMatrix]) -> QuantizedMatrix:
    """Matrices of one kind as one, top to bottom: [N1 + N2 + ..., K]."""
    first = matrices[0]
    low = None if first.minimum is None else torch.cat([m.minimum for m in matrices])
    codes, scale = (torch.cat([getattr(m, f) for m in matrices]) for f in ("codes", "scale"))
    return QuantizedMatrix(first.bits, codes, scale, low)
