"""A quantised weight as the kernel reads it, and its product. Introduced in chapter 11."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.models.quantized import kernel
from lib.models.quantized.kernel import COLUMN, WORDS
from lib.models.quantized.matrix import QuantizedMatrix
from lib.models.quantized.tile_code import BLOCK, LANES

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
        self._row: np.ndarray | None = None

    @property
    def weight_bytes(self) -> int:
        return sum(b.nbytes for b in (self.words, self.scale, self.minimum) if b is not None)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cuda":
            from lib.models.quantized.triton_product import multiply as on_gpu  # needs Triton

            kind = (self.bits, self.zero, self.blocks_per_group, self.out_features)
            return on_gpu(x.contiguous(), self.words, self.scale, self.minimum, *kind)
        return multiply([self], x)

    def row(self, column: int = 0) -> np.ndarray:
        """This weight as the CPU's kernels take it: [FIELDS] int64, with `column`, that of its first output.

        The addresses in it are valid as long as this module keeps its buffers, on the device that they are on.
        """
        if self._row is None or self._row[WORDS] != self.words.data_ptr():
            half = self.scale.dtype == torch.float16
            addresses = [
                0 if b is None else b.data_ptr() for b in (self.words, self.scale, self.minimum)
            ]
            tiles, groups = self.scale.shape[:2]
            sizes = (self.bits, tiles, groups, self.blocks_per_group, 0)
            self._row = np.array([*addresses, half, *sizes], np.int64)
        row = self._row.copy()
        row[COLUMN] = column
        return row

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


def weight_rows(parts: Sequence[QuantizedWeight]) -> np.ndarray:
    """The rows of a matrix's parts, one below the other: [P, FIELDS]. All but the last need whole tiles."""
    starts = accumulate((part.out_features for part in parts), initial=0)
    return np.stack([part.row(column) for part, column in zip(parts, starts)])


def multiply(parts: Sequence[QuantizedWeight], x: Tensor) -> Tensor:
    """x [T, in] W^T on a CPU, float32 [T, out], where W is `parts` one below the other."""
    inputs, outputs = parts[0].in_features, sum(part.out_features for part in parts)
    x = x.float()
    if x.shape[1] < inputs:
        x = F.pad(x, (0, inputs - x.shape[1]))
    out = torch.empty(x.shape[0], -(-outputs // LANES) * LANES)
    threads = min(torch.get_num_threads(), numba.get_num_threads())
    function = kernel.multiply_int8 if parts[0].activations == "int8" else kernel.multiply_float
    function(weight_rows(parts), x.contiguous().numpy(), out.numpy(), threads)
    return out[:, :outputs]


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
