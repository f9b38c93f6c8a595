"""All quantised weights of a model's layers as one argument of a compiled function.

An overload of `lib.models.fused.weights.multiply`: so chapter 8's function for all layers of a step
runs on quantised weights too. Introduced in chapter 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from lib.models.fused.weights import multiply
from lib.models.quantized.kernel import FIELDS, multiply_float, multiply_int8
from lib.models.quantized.layers import QuantizedLinear
from lib.models.quantized.tile_code import LANES
from lib.models.quantized.weight import weight_rows


class Int8Weights(NamedTuple):
    """Quantised weights of L layers for activations that are rounded to 8 bits.

    The layers' own tensors have to live as long as this table.
    """

    parts: np.ndarray  # [L, 4, P, FIELDS] int64: rows of `lib.models.quantized.kernel`
    num_parts: np.ndarray  # [L, 4] int64: the parts of each product, at most P
    inputs: np.ndarray  # [4] int64: a row's inputs, padded to whole blocks
    outputs: np.ndarray  # [4] int64, padded to whole tiles


class FloatWeights(NamedTuple):
    """As Int8Weights, for float32 activations."""

    parts: np.ndarray
    num_parts: np.ndarray
    inputs: np.ndarray
    outputs: np.ndarray


def step_weights(layers: Sequence[Sequence[Any]]) -> Int8Weights | FloatWeights | None:
    """The table of `layers`, each its four linear layers.

    None unless all of them are quantised, in parts that one call can multiply with.
    """
    linears = [linear for layer in layers for linear in layer]
    if not all(type(linear) is QuantizedLinear and linear.in_tiles for linear in linears):
        return None
    kinds = {part.activations for linear in linears for part in linear.parts}
    shapes = {
        (which, linear.parts[0].in_features, linear.out_features)
        for layer in layers
        for which, linear in enumerate(layer)
    }
    if len(kinds) > 1 or len(shapes) > 4:
        return None
    most = max(len(linear.parts) for linear in linears)
    parts = np.zeros((len(layers), 4, most, FIELDS), np.int64)
    for i, layer in enumerate(layers):
        for which, linear in enumerate(layer):
            parts[i, which, : len(linear.parts)] = weight_rows(linear.parts)
    kind = Int8Weights if kinds == {"int8"} else FloatWeights
    return kind(
        parts,
        np.array([[len(linear.parts) for linear in layer] for layer in layers], np.int64),
        np.array([linear.parts[0].in_features for linear in layers[0]], np.int64),
        np.array([-(-linear.out_features // LANES) * LANES for linear in layers[0]], np.int64),
    )


@overload(multiply)
def _multiply_quantized(weights, layer, which, x, threads):
    if not isinstance(weights, types.BaseNamedTuple):
        return None
    if weights.instance_class not in (Int8Weights, FloatWeights):
        return None
    product = multiply_int8 if weights.instance_class is Int8Weights else multiply_float

    def compute(weights, layer, which, x, threads):
        out = np.empty((x.shape[0], weights.outputs[which]), np.float32)
        parts = weights.parts[layer, which, : weights.num_parts[layer, which]]
        product(parts, x, out, threads)
        return out

    return compute
