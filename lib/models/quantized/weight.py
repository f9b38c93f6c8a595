"""A quantised weight as the kernel reads it, and its product. Introduced in chapter 11."""

from __future__ import annotations

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.models.quantized import kernel
from lib.models.quantized.kernel import BLOCK, LANES
from lib.models.quantized.matrix import QuantizedMatrix

ACTIVATIONS = ("float32", "int8")


class QuantizedWeight(nn.Module):
    """W [N, K] in tiles of 16 output channels; `forward(x [T, K]) -> x W^T [T, N]`, in float32.

    The codes and scales of the matrix are not changed, only rearranged. words [tiles, K / 32,
    vectors, 16, 4] bytes: a vector is four inputs of 16 channels. 8 bits: 8 vectors per block,
    vector i has inputs 4i to 4i + 3. 4 bits: 4 vectors per block, vector i has inputs 4i to 4i + 3
    in the low halves of the bytes and 16 + 4i to 16 + 4i + 3 in the high ones, so that a byte holds
    the same two inputs as in a GGUF file. scale, minimum [tiles, groups, 16]. The last tile is
    padded with zeros.

    activations: "float32" multiplies with x as it is; "int8" (CPU only) first rounds x to 8 bits,
    with one scale per row and block of 32, as llama.cpp does. Because no scale is shared between
    rows, the result of a row does not depend on the other rows of the batch.
    """

    def __init__(self, matrix: QuantizedMatrix, activations: str = "float32") -> None:
        super().__init__()
        if activations not in ACTIVATIONS:
            raise ValueError(f"activations must be one of {list(ACTIVATIONS)}, got {activations!r}")
        self.bits, self.activations = matrix.bits, activations
        self.out_features, self.in_features = matrix.codes.shape
        self.zero = 8 if matrix.bits == 4 and matrix.minimum is None else 0
        self.blocks_per_group = matrix.group_size // BLOCK
        minimum = None if matrix.minimum is None else _lanes(matrix.minimum)
        for name, value in (
            ("words", _words(matrix.codes, matrix.bits)),
            ("scale", _lanes(matrix.scale)),
            ("minimum", minimum),
        ):
            self.register_buffer(name, value, persistent=False)
        self._views: list[np.ndarray | None] | None = None
        self._multiply = kernel.multiply_int8 if activations == "int8" else kernel.multiply_float

    @property
    def weight_bytes(self) -> int:
        return sum(b.nbytes for b in (self.words, self.scale, self.minimum) if b is not None)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cuda":
            from lib.models.quantized.triton_product import multiply  # needs Triton

            kind = (self.bits, self.zero, self.blocks_per_group, self.out_features)
            return multiply(x.contiguous(), self.words, self.scale, self.minimum, *kind)
        x = F.pad(x.float(), (0, self.in_features - x.shape[1])).contiguous()
        out = np.empty((x.shape[0], self.scale.shape[0] * LANES), np.float32)
        threads = min(torch.get_num_threads(), numba.get_num_threads(), self.scale.shape[0])
        self._multiply(*self.arrays, self.blocks_per_group, x.numpy(), out, threads)
        return torch.from_numpy(out)[:, : self.out_features]

    @property
    def arrays(self) -> list[np.ndarray | None]:
        """words, scale, minimum for the CPU's kernel, float16 as uint16 of the same bits."""
        if self._views is None:
            self._views = [
                None
                if v is None
                else (v.view(torch.uint16) if v.dtype == torch.float16 else v).numpy()
                for v in (self.words, self.scale, self.minimum)
            ]
        return self._views

    def rows(self, ids: Tensor) -> Tensor:
        """Rows `ids` [T] of W, dequantised: float32 [T, K]. Used by embeddings."""
        tile, lane = ids // LANES, ids % LANES
        words = self.words[tile, :, :, lane]  # [T, blocks, vectors, 4]
        if self.bits == 8:
            codes = words.flatten(1)
        else:
            codes = torch.stack((words & 15, words >> 4), dim=2).flatten(1)
        groups = self.scale.shape[1]
        values = codes.float().sub_(self.zero).view(len(ids), groups, -1)
        values *= self.scale[tile, :, lane].float()[..., None]
        if self.minimum is not None:
            values += self.minimum[tile, :, lane].float()[..., None]
        return values.view(len(ids), -1)

    def extra_repr(self) -> str:
        return f"{self.out_features}, {self.in_features}, bits={self.bits}"


def _tiles(rows: Tensor) -> Tensor:
    """[N, ...] to [tiles, 16, ...], padded with zeros."""
    padding = -rows.shape[0] % LANES
    if padding:
        rows = torch.cat([rows, rows.new_zeros(padding, *rows.shape[1:])])
    return rows.reshape(-1, LANES, *rows.shape[1:])


def _lanes(values: Tensor) -> Tensor:
    """Scales [N, groups] to [tiles, groups, 16]."""
    return _tiles(values).transpose(1, 2).contiguous()


def _words(codes: Tensor, bits: int) -> Tensor:
    """Codes [N, K], one per byte, to [tiles, K / 32, vectors, 16, 4]."""
    blocks = codes.shape[1] // BLOCK
    tiles = _tiles(codes)
    if bits == 4:
        low, high = tiles.view(-1, LANES, blocks, 2, BLOCK // 2).unbind(3)
        tiles = low | (high << 4)
    return tiles.reshape(-1, LANES, blocks, bits, 4).permute(0, 2, 3, 1, 4).contiguous()
