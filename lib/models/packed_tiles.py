"""The memory of a packed weight as an array, so that a kernel of our own can read it in place.

oneDNN does not document which layout it chooses for a CPU. For AVX-512 it is tiles of 64 outputs: all inputs of a
tile one after the other, and for each input (for each pair of inputs in bfloat16) the weights of the 64 outputs side
by side. Whether a weight has this layout is compared with the plain weight, never assumed. Introduced in chapter 8.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

TILE = 64  # outputs
_LINE = 64  # bytes; oneDNN fills the inputs up to a multiple of as many, with zeros


def packed_tiles(packed: Tensor, weight: Tensor) -> np.ndarray | None:
    """A view of `packed`: float32 [tiles, inputs, 64], or the bits of bfloat16 as uint16,
    [tiles, inputs / 2, 64, 2].

    packed: the opaque tensor that oneDNN made of `weight` [out, in]. None where it lies in
    another order.
    """
    if not hasattr(torch.ops.mkldnn, "data_ptr") or weight.dtype not in (
        torch.float32,
        torch.bfloat16,
    ):
        return None
    outputs, inputs = weight.shape
    multiple = _LINE // weight.itemsize
    tiles, rows = -(-outputs // TILE), -(-inputs // multiple) * multiple
    if torch.ops.mkldnn._nbytes(packed) != tiles * TILE * rows * weight.itemsize:
        return None
    if weight.dtype == torch.float32:
        view = np.asarray(_Memory(packed, "<f4", (tiles, rows, TILE)))
    else:
        view = np.asarray(_Memory(packed, "<u2", (tiles, rows // 2, TILE, 2)))
    # Comparing all of it would read every weight twice more: the first and the last tile do.
    same = all(
        np.array_equal(_tile(weight[tile * TILE : (tile + 1) * TILE], rows), view[tile])
        for tile in {0, tiles - 1}
    )
    return view if same else None


class _Memory:
    """A packed tensor's memory for NumPy, which keeps this object, and with it the tensor, as long as the array."""

    def __init__(self, packed: Tensor, kind: str, shape: tuple[int, ...]) -> None:
        self.packed = packed
        address = torch.ops.mkldnn.data_ptr(packed)
        self.__array_interface__ = {
            "version": 3,
            "typestr": kind,
            "shape": shape,
            "data": (address, False),
        }


def _tile(weight: Tensor, rows: int) -> np.ndarray:
    """At most 64 rows of a plain weight in the order of a tile."""
    tile = weight.new_zeros(rows, TILE)
    tile[: weight.shape[1], : weight.shape[0]] = weight.detach().T
    if weight.dtype == torch.float32:
        return tile.numpy()
    return tile.view(torch.uint16).view(rows // 2, 2, TILE).transpose(1, 2).numpy()
