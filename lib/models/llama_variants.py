"""Families that differ from Llama in a few lines: Mistral, Qwen2, Qwen3, SmolLM3 and OLMo-2.

Jiang et al. 2023 (Mistral: sliding windows), Yang et al. 2024 (Qwen2: biases on q, k and v), Yang et al. 2025 (Qwen3:
norms of q and k), Bakouch et al. 2025 (SmolLM3: layers without RoPE), OLMo Team 2024 (OLMo-2: norms after attention and
MLP). Each difference is a field of ModelConfig. Introduced in chapter 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lib.core.attention import Attention
from lib.core.batch import Batch
from lib.models import llama
from lib.models.config import ModelConfig
from lib.models.llama import RMSNorm, rotate


def split_qkv(
    qkv: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    heads: int,
    kv_heads: int,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """qkv [T, (Hq + 2 Hkv) D] to q [T, Hq, D], and k and v [T, Hkv, D]: normed, then rotated.

    q_norm, k_norm: weights of RMSNorms over each head [D] or over all of them [H D]; None: no
    norms. cos, sin [T, 1, D/2]; None: no rotation.
    """
    size = qkv.shape[1] // (heads + 2 * kv_heads)
    q, k, v = qkv.split((heads * size, kv_heads * size, kv_heads * size), dim=-1)
    if q_norm is not None and k_norm is not None:
        q, k = (
            F.rms_norm(y.reshape(y.shape[0], -1, w.shape[0]), w.shape, w, eps)
            for y, w in ((q, q_norm), (k, k_norm))
        )
    q, k, v = (y.reshape(y.shape[0], -1, size) for y in (q, k, v))
    if cos is None or sin is None:
        return q, k, v
    return rotate(q, cos, sin), rotate(k, cos, sin), v


class VariantBlock(llama.Block):
    """Llama's layer with the differences that the config names. Parameters are Llama's and the norms of q and k."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.rotates = not config.rope_layers or config.rope_layers[layer]
        self.window = config.layer_windows[layer] if config.layer_windows else None
        self.post_norm, self.q_norm, self.k_norm = config.post_norm, None, None
        if config.qk_norm is not None:
            per_head = config.qk_norm == "head"
            self.q_norm, self.k_norm = (
                RMSNorm(self.head_dim * (1 if per_head else heads), config.norm_eps)
                for heads in (self.num_heads, self.num_kv_heads)
            )

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, batch: Batch, attention: Attention
    ) -> Tensor:
        if self.post_norm:
            x = x + self.attention_norm(self.attend(x, cos, sin, batch, attention))
            return x + self.mlp_norm(self.mlp(x))
        x = x + self.attend(self.attention_norm(x), cos, sin, batch, attention)
        return x + self.mlp(self.mlp_norm(x))

    def attend(
        self, x: Tensor, cos: Tensor, sin: Tensor, batch: Batch, attention: Attention
    ) -> Tensor:
        q, k, v = self.split(self.qkv(x), cos, sin)
        y = attention(self.layer, q, k, v, batch, self.window)
        return self.proj(y.reshape(x.shape[0], -1))

    def split(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, function: Callable[..., Any] = split_qkv
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`function` with this layer's heads, norms and rotation."""
        angles = (cos, sin) if self.rotates else (None, None)
        weights = (None, None) if self.q_norm is None else (self.q_norm.weight, self.k_norm.weight)
        return function(
            qkv, *angles, self.num_heads, self.num_kv_heads, *weights, self.attention_norm.eps
        )

    def mlp(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class LlamaVariant(llama.Llama):
    """A Llama whose layers are VariantBlocks."""

    block = VariantBlock

    def checkpoint_shapes(self) -> dict[str, tuple[int, ...]]:
        """As Llama's. The norms' names follow their place, and q and k may have their own."""
        shapes = {self._renamed(name): shape for name, shape in super().checkpoint_shapes().items()}
        for module, name in self._qk_norms().items():
            shapes[f"{name}.weight"] = tuple(self.get_submodule(module).weight.shape)
        return shapes

    def checkpoint_names(self) -> dict[str, tuple[str, ...]]:
        """As Llama's, with the norms of q and k."""
        names = {
            module: tuple(self._renamed(part) for part in parts)
            for module, parts in super().checkpoint_names().items()
        }
        return names | {module: (part,) for module, part in self._qk_norms().items()}

    def _renamed(self, name: str) -> str:
        if not self.config.post_norm:
            return name
        # OLMo-2's norms stand after attention and MLP, and are named after what they follow.
        name = name.replace("post_attention_layernorm", "post_feedforward_layernorm")
        return name.replace("input_layernorm", "post_attention_layernorm")

    def _qk_norms(self) -> dict[str, str]:
        """Module and name in the checkpoint of each norm of q or k."""
        if self.config.qk_norm is None:
            return {}
        return {
            f"blocks.{i}.{part}": f"layers.{i}.self_attn.{part}"
            for i in range(self.config.num_layers)
            for part in ("q_norm", "k_norm")
        }
