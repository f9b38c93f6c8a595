"""Linear layers and embeddings over quantised weights. Introduced in chapter 11."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.models.quantized.fp8 import FP8Matrix, FP8Weight, join
from lib.models.quantized.matrix import QuantizedMatrix, stack
from lib.models.quantized.tile_code import LANES
from lib.models.quantized.weight import QuantizedWeight, multiply


class QuantizedLinear(nn.Module):
    """y = x W^T + b for x [T, in], where W is quantised: no float copy of it exists.

    W may consist of several matrices, one below the other (q, k and v). They may be of different
    kinds, as in GGUF files that keep some tensors in more bits, or as floats. Neighbours of one
    kind are joined into one part.
    """

    def __init__(
        self,
        parts: Sequence[QuantizedMatrix | FP8Matrix | Tensor],
        bias: Tensor | None,
        in_features: int,
        activations: str,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        for kind, same in groupby(parts, _kind):
            matrices = list(same)
            if kind is None:
                modules.append(_FloatWeight(torch.cat(matrices).to(dtype)))
            elif isinstance(matrices[0], FP8Matrix):
                modules.append(FP8Weight(join(matrices)))
            else:
                modules.append(QuantizedWeight(stack(matrices), activations))
        self.parts = nn.ModuleList(modules)
        self.out_features = sum(part.out_features for part in modules)
        self.in_features = in_features  # a part may be padded to whole blocks
        # Whether one call can multiply with all parts: none is float, and each begins at a whole tile.
        self.in_tiles = all(isinstance(part, QuantizedWeight) for part in modules) and all(
            part.out_features % LANES == 0 for part in modules[:-1]
        )
        self.bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and self.in_tiles:
            y = multiply(self.parts, x)
        else:
            outputs = [part(x) for part in self.parts]
            y = outputs[0] if len(outputs) == 1 else torch.cat([o.float() for o in outputs], dim=1)
        y = y.to(x.dtype)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class QuantizedEmbedding(nn.Module):
    """Looks up rows of a quantised matrix, which a tied head shares, so that memory has it once."""

    def __init__(self, weight: QuantizedWeight, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.rows, self.width, self.dtype = weight, width, dtype

    def forward(self, ids: Tensor) -> Tensor:
        return self.rows.rows(ids)[:, : self.width].to(self.dtype)


class QuantizedHead(nn.Module):
    """A tied head: computes logits with the weight of the QuantizedEmbedding."""

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        self.rows = weight

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(x).to(x.dtype)


class _FloatWeight(nn.Module):
    """A part of a QuantizedLinear that is not quantised."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


def _kind(part: QuantizedMatrix | FP8Matrix | Tensor) -> object:
    return None if isinstance(part, Tensor) else part.kind
