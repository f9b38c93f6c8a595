"""All weights of a model's products as one argument of a compiled function.

A function that computes several layers cannot take each weight as an argument of its own: there are too many. It takes
a table of addresses, and `multiply` is Numba's overload for the kind of table. Introduced in chapter 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from lib.models.fused.tile_product import TILE, multiply_tiles
from lib.models.packed import PackedLinear

QKV, PROJ, WIDE, DOWN = range(4)  # a layer's products; WIDE: gate and up, or GPT-2's fc_in
WORTH_THREADS = 2**15  # weights of the smallest product that is divided among threads


class TileWeights(NamedTuple):
    """Packed weights of L layers. The layers' own tensors have to live as long as this table."""

    like: np.ndarray  # empty; float32, or uint16 for bfloat16
    addresses: np.ndarray  # [L, 4] int64
    inputs: np.ndarray  # [4] int64: a row's inputs, filled up as in the tiles
    outputs: np.ndarray  # [4] int64, filled up to whole tiles
    divided: np.ndarray  # [4] bool: whether a product is large enough for several threads


def tile_weights(layers: Sequence[Sequence[Any]]) -> TileWeights | None:
    """The table of `layers`, each its four linear layers; None unless all are packed in tiles of one kind."""
    tiles = [[x.tiles if type(x) is PackedLinear else None for x in layer] for layer in layers]
    if any(w is None for layer in tiles for w in layer):
        return None
    if len({(w.dtype, i, w.shape) for layer in tiles for i, w in enumerate(layer)}) > 4:
        return None
    first = tiles[0]
    return TileWeights(
        np.empty(0, first[0].dtype),
        np.array([[w.ctypes.data for w in layer] for layer in tiles], np.int64),
        np.array([w.size // (len(w) * TILE) for w in first], np.int64),
        np.array([len(w) * TILE for w in first], np.int64),
        np.array([w.size >= WORTH_THREADS for w in first]),
    )


def multiply(weights, layer, which, x, threads):
    """x [T, K] W^T as a new array [T, N], for product `which` of `layer`; only inside of compiled functions.

    x float32. K is `weights.inputs[which]`, N `weights.outputs[which]`; outputs beyond those of W
    have no meaning.
    """
    raise NotImplementedError("a compiled function calls this; see the overloads")


@overload(multiply)
def _multiply_tiles(weights, layer, which, x, threads):
    if not (isinstance(weights, types.BaseNamedTuple) and weights.instance_class is TileWeights):
        return None

    def compute(weights, layer, which, x, threads):
        out = np.empty((x.shape[0], weights.outputs[which]), np.float32)
        used = threads if weights.divided[which] else 1
        multiply_tiles(weights.like, weights.addresses[layer, which], x, out, used)
        return out

    return compute
