"""Puts a checkpoint's quantised weights into a model, one module at a time.

Introduced in chapter 11.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from lib.core.numba_cache import start_threads
from lib.models.quantized.fp8 import FP8Matrix
from lib.models.quantized.layers import QuantizedEmbedding, QuantizedHead, QuantizedLinear
from lib.models.quantized.matrix import QuantizedMatrix
from lib.models.quantized.weight import QuantizedWeight


class Weights(Protocol):
    """A checkpoint's tensors by name, read when they are asked for."""

    def matrix(self, name: str, is_embedding: bool = False) -> QuantizedMatrix | FP8Matrix | Tensor:
        """A weight [out, in], quantised; a float tensor where the checkpoint keeps one.

        With is_embedding, of the embedding or the head, never an FP8Matrix.
        """

    def vector(self, name: str) -> Tensor:
        """A norm, a bias or a table of positions."""


@torch.no_grad()
def fill(model: nn.Module, weights: Weights, activations: str, dtype: torch.dtype) -> None:
    """Replace linear layers and embedding of `model`, whose tensors are on the meta device.

    The weights of at most one module exist as floats at a time, so that loading takes little more
    memory than the quantised model. Norms, biases and positions become parameters of `dtype`.
    """
    start_threads()
    for path, names in model.checkpoint_names().items():
        module = model.get_submodule(path)
        if type(module) is nn.Linear:
            is_head = path == "lm_head"
            parts = [weights.matrix(f"{name}.weight", is_head) for name in names]
            bias = None
            if module.bias is not None:
                bias = torch.cat([weights.vector(f"{name}.bias") for name in names])
            linear = _linear(parts, bias, module.in_features, activations, dtype)
            model.set_submodule(path, linear)
        elif path == "token_embedding":
            _set_embedding(model, weights.matrix(f"{names[0]}.weight", True), activations, dtype)
        else:
            for kind, _ in list(module.named_parameters()):
                values = torch.cat([weights.vector(f"{name}.{kind}") for name in names])
                setattr(module, kind, _parameter(values, dtype))
    for name, table in model.fresh_buffers(model.config).items():
        setattr(model, name, table)
    model.eval()


def _linear(
    parts: list[QuantizedMatrix | FP8Matrix | Tensor],
    bias: Tensor | None,
    in_features: int,
    activations: str,
    dtype: torch.dtype,
) -> nn.Module:
    """A QuantizedLinear; if no part is quantised an nn.Linear, which `linear` can pack."""
    if not all(isinstance(part, Tensor) for part in parts):
        return QuantizedLinear(parts, bias, in_features, activations, dtype)
    linear = nn.Linear(1, 1, bias=bias is not None, device="meta")
    linear.weight = _parameter(torch.cat(parts), dtype)
    linear.out_features, linear.in_features = linear.weight.shape
    if bias is not None:
        linear.bias = _parameter(bias, dtype)
    return linear


def _set_embedding(
    model: nn.Module, matrix: QuantizedMatrix | Tensor, activations: str, dtype: torch.dtype
) -> None:
    """The embedding, and the head where it is tied: one weight for both."""
    if isinstance(matrix, Tensor):
        model.token_embedding.weight = _parameter(matrix, dtype)
        if model.config.tie_word_embeddings:
            model.lm_head.weight = model.token_embedding.weight
        return
    weight, width = QuantizedWeight(matrix, activations), model.config.hidden_size
    model.token_embedding = QuantizedEmbedding(weight, width, dtype)
    if model.config.tie_word_embeddings:
        model.lm_head = QuantizedHead(weight)


def _parameter(values: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """A copy: the tensor may be a view into a mapped file."""
    return nn.Parameter(values.to(dtype, copy=True).contiguous(), requires_grad=False)
