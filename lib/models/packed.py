"""Linear layers whose weights lie in memory the way the CPU's matrix kernel reads them. Introduced in chapter 8.

`F.linear` hands a row-major weight to a general matrix product, which rearranges it, or does without, at every call. At
decode sizes that costs more than the product. oneDNN can rearrange once, at load (a "blocked" layout), and run its kernel
on that: it is what torch.compile's freezing does, through the same two operators of PyTorch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.models.packed_tiles import packed_tiles

# The rule by which linear="auto" packs (it also fuses: lib.models.fused.choose). It asks no clock, so that the same machine
# runs the same kernels, and a seed gives the same text, after every start. Where it comes from: `products` in
# book/measurements/amd-epyc-2core/08_launch_overhead.json.
# There the packed product is faster for both dtypes at every batch size, 1 to 64. A weight below PACKED_ELEMENTS stays in
# the processor's cache, where its layout does not matter.
PACKED_DTYPES = (torch.float32, torch.bfloat16)
PACKED_ELEMENTS = 2**16


class PackedLinear(nn.Module):
    """y = x W^T + b for x [..., in]; holds only the packed W."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.weight_bytes = linear.weight.nbytes
        # Opaque: no parameter or buffer, since it cannot be moved or saved.
        self._packed = pack(linear.weight)
        self.tiles = packed_tiles(self._packed, linear.weight)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return _product(x, self._packed, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def pack(weight: Tensor) -> Tensor:
    """weight [out, in] in oneDNN's layout: an opaque tensor."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)


def why_not_packed(device: torch.device, dtype: torch.dtype) -> str | None:
    """What keeps weights from being packed here, or None."""
    if device.type != "cpu":
        return f"it is for the CPU's matrix kernels, not for {device.type}"
    if not torch.backends.mkldnn.is_available() or not hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    ):
        return "this build of PyTorch has no oneDNN"
    if dtype not in PACKED_DTYPES:
        return f"it is for float32 and bfloat16, not for {str(dtype).removeprefix('torch.')}"
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "this CPU has no bfloat16 arithmetic that oneDNN can use"
    return None


def pack_linears(model: nn.Module, linear: str) -> int:
    """Replace the model's nn.Linear in place; returns how many were.

    `linear`: "plain" none; "packed" and "fused" all, ValueError where that cannot be; "auto"
    those of at least PACKED_ELEMENTS elements, none where oneDNN cannot pack. A tied head is
    packed beside the embedding, which needs its rows as they are.
    """
    if linear == "plain":
        return 0
    weight = next(model.parameters())
    if (problem := why_not_packed(weight.device, weight.dtype)) is not None:
        if linear != "auto":
            raise ValueError(f"linear {linear!r} cannot be had: {problem}")
        return 0
    least = PACKED_ELEMENTS if linear == "auto" else 0
    packed = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight.numel() >= least:
                # Frees the plain weight before the next one is packed.
                setattr(parent, name, PackedLinear(child))
                packed += 1
    return packed


def _product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
