"""Linear layers whose weights lie in memory the way the CPU's matrix kernel reads them. Introduced in chapter 8.

`F.linear` hands a row-major weight to a general matrix product, which rearranges it, or does without, at every call. At
decode sizes that costs more than the product. oneDNN can rearrange once, at load (a "blocked" layout), and run its kernel
on that: it is what torch.compile's freezing does, through the same two operators of PyTorch.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_DTYPES = (torch.float32, torch.bfloat16)
_LEAST = 2**16  # elements: a smaller weight stays in the cache, where its layout does not matter
_TOKENS = (1, 16)  # sizes of a step at which the layouts are compared
_REPEATS = 5  # the fastest counts: whatever else the machine does can only add


class PackedLinear(nn.Module):
    """y = x W^T + b for x [..., in]; holds only the packed W."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight_bytes = linear.weight.nbytes
        self._packed = pack(
            linear.weight
        )  # opaque: no parameter or buffer, since it cannot be moved or saved
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
    if dtype not in _DTYPES:
        return f"it is for float32 and bfloat16, not for {str(dtype).removeprefix('torch.')}"
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "this CPU has no bfloat16 arithmetic that oneDNN can use"
    return None


def pack_linears(model: nn.Module, linear: str) -> int:
    """Replace the model's nn.Linear in place; returns how many were.

    `linear`: "plain" none; "packed" all, ValueError where that cannot be; "auto" those whose shape runs faster packed on this
    machine, none where it cannot be; small ones stay plain. A tied head is packed beside the embedding, which needs its rows as they are.
    """
    if linear == "plain":
        return 0
    weight = next(model.parameters())
    if (problem := why_not_packed(weight.device, weight.dtype)) is not None:
        if linear == "packed":
            raise ValueError(f"linear 'packed' cannot be had: {problem}")
        return 0
    faster: dict[tuple[int, int, bool], bool] = {}
    packed = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Linear:
                continue
            shape = (child.in_features, child.out_features, child.bias is not None)
            if linear == "auto" and shape not in faster:
                faster[shape] = child.weight.numel() >= _LEAST and runs_faster(child)
            if linear == "packed" or faster[shape]:
                setattr(
                    parent, name, PackedLinear(child)
                )  # the plain weight goes before the next one is packed
                packed += 1
    return packed


@torch.inference_mode()
def runs_faster(linear: nn.Linear) -> bool:
    """Whether the packed weight wins, over steps of `_TOKENS` tokens together, on this machine now."""
    packed = pack(linear.weight)
    plain_time = packed_time = 0.0
    for tokens in _TOKENS:
        x = torch.zeros(tokens, linear.in_features, dtype=linear.weight.dtype)
        times = _fastest(
            lambda x=x: F.linear(x, linear.weight, linear.bias),
            lambda x=x: _product(x, packed, linear.bias),
        )
        plain_time, packed_time = plain_time + times[0], packed_time + times[1]
    return packed_time < plain_time


def _product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def _fastest(*functions: Callable[[], Tensor]) -> list[float]:
    """Seconds of each function's fastest run, taken in turns so that a disturbance meets all of them."""
    times = [float("inf")] * len(functions)
    for _ in range(_REPEATS):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function()
            times[i] = min(times[i], time.perf_counter() - start)
    return times
