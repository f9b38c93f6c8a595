"""Weights and activations in float8_e4m3fn: a sign, 4 bits of exponent, 3 bits of mantissa.

Values go up to 448 in size and have a relative rounding error of at most 1/16 down to 2^-6 = 0.016;
below it the steps are 2^-9 = 0.002. Micikevicius et al. 2022. Introduced in chapter 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max  # 448
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # of a row of zeros
_MULTIPLE = 16  # rows and columns of a weight, as torch._scaled_mm on CUDA needs them


@dataclass(frozen=True)
class FP8Matrix:
    """w[n, k] = scale[n] * codes[n, k]; codes [N, K] float8_e4m3fn, scale [N] float32.

    Raises ValueError for other types and shapes.
    """

    codes: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        if self.codes.dtype != FP8 or self.codes.dim() != 2:
            raise ValueError(
                f"codes must be [N, K] of {FP8}, got {list(self.codes.shape)} of {self.codes.dtype}"
            )
        if self.scale.dtype != torch.float32 or self.scale.shape != self.codes.shape[:1]:
            raise ValueError(
                f"scale must be [{len(self.codes)}] of torch.float32, "
                f"got {list(self.scale.shape)} of {self.scale.dtype}"
            )

    @property
    def kind(self) -> str:
        """Matrices of one kind can be joined to one layer."""
        return "fp8"

    def dequantize(self) -> Tensor:
        """float32 [N, K]."""
        return self.codes.float() * self.scale[:, None]


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [N, K] rounded to the nearest float8, with one scale per row, max|x| / 448.

    Returns (codes [N, K], scale [N, 1] float32). A row with NaN or infinity has codes that are NaN.
    """
    scale = x.abs().amax(dim=1, keepdim=True).float() / LARGEST
    scale = scale.clamp(min=_SMALLEST_SCALE)
    return (x / scale).to(FP8), scale


def round_fp8(weight: Tensor) -> FP8Matrix:
    """weight [N, K] with one scale per output channel."""
    codes, scale = round_rows(weight)
    return FP8Matrix(codes, scale.flatten())


def join(matrices: Sequence[FP8Matrix]) -> FP8Matrix:
    """One matrix, top to bottom: [N1 + N2 + ..., K]."""
    # Some versions of PyTorch cannot join tensors of float8: their bytes can be joined.
    codes = torch.cat([m.codes.view(torch.uint8) for m in matrices]).view(FP8)
    return FP8Matrix(codes, torch.cat([m.scale for m in matrices]))


class FP8Weight(nn.Module):
    """W [N, K] in float8; `forward(x [T, K]) -> x W^T [T, N]`.

    x is rounded to float8 in each call, with one scale per row: the result of a row does not depend
    on the other rows of the batch. The products of codes are added in float32. No float copy of W
    is kept. codes [N, K] and scale [N] are padded with zeros to multiples of 16.

    The device must be one that `check_device` accepts.
    """

    def __init__(self, matrix: FP8Matrix) -> None:
        super().__init__()
        self.out_features, self.in_features = matrix.codes.shape
        padding = (0, -self.in_features % _MULTIPLE, 0, -self.out_features % _MULTIPLE)
        codes = F.pad(matrix.codes.view(torch.uint8), padding).view(FP8)
        self.register_buffer("codes", codes.contiguous(), persistent=False)
        self.register_buffer("scale", F.pad(matrix.scale, (0, padding[3])), persistent=False)
        self.register_buffer("one", torch.ones(()), persistent=False)
        self._by_row: bool | None = None  # known once the weight is where it stays

    @property
    def weight_bytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes

    def forward(self, x: Tensor) -> Tensor:
        codes, scale = round_rows(x)
        padding = self.codes.shape[1] - x.shape[1]
        if padding:
            codes = F.pad(codes.view(torch.uint8), (0, padding)).view(FP8)
        if self._by_row is None:
            self._by_row = scales_by_row(x.device)
        if self._by_row and x.dtype == torch.bfloat16:
            y = torch._scaled_mm(
                codes, self.codes.T, scale_a=scale, scale_b=self.scale[None], out_dtype=x.dtype
            )
        else:
            one = self.one
            y = torch._scaled_mm(
                codes, self.codes.T, scale_a=one, scale_b=one, out_dtype=torch.float32
            )
            y = y * scale * self.scale
        return y[:, : self.out_features]

    def extra_repr(self) -> str:
        return f"{self.out_features}, {self.in_features}, float8_e4m3fn"


def scales_by_row(device: torch.device) -> bool:
    """Whether torch._scaled_mm applies a scale per row and per channel itself, with bfloat16 output."""
    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= (9, 0)


def check_device(device: torch.device, what: str) -> None:
    """Raise ValueError, which begins with `what`, unless the device multiplies float8.

    These are NVIDIA GPUs of compute capability 8.9 (Ada), 9.0 (Hopper) and later. A CPU is accepted
    for tests: torch._scaled_mm converts both factors to floats there, in each call.
    """
    needed = "needs an NVIDIA GPU of compute capability >= 8.9 (Ada, Hopper), or for tests a CPU"
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and torch.version.hip):
        raise ValueError(f"{what} {needed}; got device {str(device)!r}")
    if device.type == "cuda" and (found := torch.cuda.get_device_capability(device)) < (8, 9):
        raise ValueError(
            f"{what} {needed}; got device {str(device)!r} of compute capability "
            f"{found[0]}.{found[1]}, which can run quantization None, 'int8', 'int4' and 'gguf'"
        )
