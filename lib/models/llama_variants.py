"""Families that differ from Llama in a few lines: Mistral, Qwen2, Qwen3, SmolLM3, OLMo-2 and Gemma.

Jiang et al. 2023 (Mistral: sliding windows), Yang et al. 2024 (Qwen2: biases on q, k and v), Yang et al. 2025 (Qwen3:
norms of q and k), Bakouch et al. 2025 (SmolLM3: layers without RoPE), OLMo Team 2024 (OLMo-2: norms after attention and
MLP). Gemma's papers: `lib.models.gemma_config`. Each difference is a field of ModelConfig. Introduced in chapter 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.core.attention import Attention
from lib.core.batch import Batch
from lib.models import llama
from lib.models.config import ModelConfig
from lib.models.llama import RMSNorm, rotate


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last len(weight) features, computed in the weight's type."""
    return F.rms_norm(x.to(weight.dtype), weight.shape, weight, eps).to(x.dtype)


class OffsetRMSNorm(RMSNorm):
    """RMSNorm that multiplies by 1 + weight: Gemma's. In float32, since 1 + weight would round in bfloat16."""

    @property
    def factor(self) -> Tensor:
        return 1 + self.weight.float()

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.factor, self.eps)


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

    q_norm, k_norm: factors of RMSNorms over each head [D] or over all of them [H D]; None: no
    norms. cos, sin [T, 1, D/2]; None: no rotation.
    """
    size = qkv.shape[1] // (heads + 2 * kv_heads)
    q, k, v = qkv.split((heads * size, kv_heads * size, kv_heads * size), dim=-1)
    if q_norm is not None and k_norm is not None:
        q, k = (
            rms_norm(y.reshape(y.shape[0], -1, w.shape[0]), w, eps)
            for y, w in ((q, q_norm), (k, k_norm))
        )
    q, k, v = (y.reshape(y.shape[0], -1, size) for y in (q, k, v))
    if cos is None or sin is None:
        return q, k, v
    return rotate(q, cos, sin), rotate(k, cos, sin), v


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


_ACTIVATIONS = {"silu": F.silu, "gelu_tanh": gelu_tanh}


class VariantBlock(llama.Block):
    """Llama's layer with the differences that the config names."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.rotates = not config.rope_layers or config.rope_layers[layer]
        self.window = config.layer_windows[layer] if config.layer_windows else None
        self.softcap, self.post_norm = config.attention_softcap, config.post_norm
        self.activation = _ACTIVATIONS[config.activation]
        # Attention multiplies scores by head_dim ** -0.5, so q carries the rest.
        scale = config.attention_scale
        self.query_scale = 1.0 if scale is None else scale * self.head_dim**0.5
        kind = OffsetRMSNorm if config.norm_offset else RMSNorm

        def norm(size: int) -> RMSNorm:
            return kind(size, config.norm_eps)

        d = config.hidden_size
        self.attention_norm, self.mlp_norm = norm(d), norm(d)
        self.attention_post_norm, self.mlp_post_norm = (
            norm(d) if config.sandwich_norm else nn.Identity() for _ in range(2)
        )
        self.q_norm = self.k_norm = None
        if config.qk_norm is not None:
            per_head = config.qk_norm == "head"
            self.q_norm, self.k_norm = (
                norm(self.head_dim * (1 if per_head else heads))
                for heads in (self.num_heads, self.num_kv_heads)
            )

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, batch: Batch, attention: Attention
    ) -> Tensor:
        if self.post_norm:
            x = x + self.attention_norm(self.attend(x, cos, sin, batch, attention))
            return x + self.mlp_norm(self.mlp(x))
        y = self.attend(self.attention_norm(x), cos, sin, batch, attention)
        x = x + self.attention_post_norm(y)
        return x + self.mlp_post_norm(self.mlp(self.mlp_norm(x)))

    def attend(
        self, x: Tensor, cos: Tensor, sin: Tensor, batch: Batch, attention: Attention
    ) -> Tensor:
        q, k, v = self.split(self.qkv(x), cos, sin)
        if self.query_scale != 1:
            q = q * self.query_scale
        y = attention(self.layer, q, k, v, batch, self.window, self.softcap)
        return self.proj(y.reshape(x.shape[0], -1))

    def split(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, function: Callable[..., Any] = split_qkv
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`function` with this layer's heads, norms and rotation."""
        angles = (cos, sin) if self.rotates else (None, None)
        factors = (
            None if norm is None else getattr(norm, "factor", norm.weight)
            for norm in (self.q_norm, self.k_norm)
        )
        return function(
            qkv, *angles, self.num_heads, self.num_kv_heads, *factors, self.attention_norm.eps
        )

    def mlp(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(self.activation(gate) * up)


class LlamaVariant(llama.Llama):
    """A Llama whose layers are VariantBlocks."""

    block = VariantBlock

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        if config.norm_offset:
            self.norm = OffsetRMSNorm(config.hidden_size, config.norm_eps)

    @staticmethod
    def fresh_buffers(config: ModelConfig) -> dict[str, Tensor]:
        """Llama's tables; beside them those of layers with a window, and the embedding's scale, if they differ."""
        buffers = llama.Llama.fresh_buffers(config)
        if config.local_rope_theta is not None:
            local = replace(config, rope_theta=config.local_rope_theta, rope_scaling=None)
            tables = llama.Llama.fresh_buffers(local)
            buffers |= {f"local_{name}": table for name, table in tables.items()}
        if config.embedding_scale != 1:
            buffers["embedding_scale"] = torch.tensor(config.embedding_scale)
        return buffers

    def forward(self, batch: Batch, attention: Attention) -> Tensor:
        x = self.token_embedding(batch.input_ids)
        if self.config.embedding_scale != 1:
            x = x * self.embedding_scale.to(x.dtype)
        angles = self._angles(batch, x.dtype, "")
        local = angles
        if self.config.local_rope_theta is not None:
            local = self._angles(batch, x.dtype, "local_")
        for block in self.blocks:
            x = block(x, *(angles if block.window is None else local), batch, attention)
        logits = self.lm_head(self.norm(x[batch.logits_indices]))
        cap = self.config.final_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _angles(self, batch: Batch, dtype: torch.dtype, prefix: str) -> list[Tensor]:
        """Cosines and sines of the batch's positions, [T, 1, D/2] each."""
        tables = (getattr(self, f"{prefix}{name}") for name in ("cos_table", "sin_table"))
        return [table[batch.positions].unsqueeze(1).to(dtype) for table in tables]

    def checkpoint_shapes(self) -> dict[str, tuple[int, ...]]:
        """As Llama's. The norms' names follow their place, and there may be more of them."""
        shapes = {self._renamed(name): shape for name, shape in super().checkpoint_shapes().items()}
        for module, name in self._more_norms().items():
            shapes[f"{name}.weight"] = tuple(self.get_submodule(module).weight.shape)
        return shapes

    def checkpoint_names(self) -> dict[str, tuple[str, ...]]:
        """As Llama's, with the norms that Llama does not have."""
        names = {
            module: tuple(self._renamed(part) for part in parts)
            for module, parts in super().checkpoint_names().items()
        }
        return names | {module: (part,) for module, part in self._more_norms().items()}

    def _renamed(self, name: str) -> str:
        # OLMo-2 and Gemma name a norm that follows attention or MLP after what it follows.
        if self.config.sandwich_norm:
            return name.replace("post_attention_layernorm", "pre_feedforward_layernorm")
        if not self.config.post_norm:
            return name
        name = name.replace("post_attention_layernorm", "post_feedforward_layernorm")
        return name.replace("input_layernorm", "post_attention_layernorm")

    def _more_norms(self) -> dict[str, str]:
        """Module and name in the checkpoint of each norm that Llama does not have."""
        norms = {}
        if self.config.qk_norm is not None:
            norms |= {part: f"self_attn.{part}" for part in ("q_norm", "k_norm")}
        if self.config.sandwich_norm:
            norms["attention_post_norm"] = "post_attention_layernorm"
            norms["mlp_post_norm"] = "post_feedforward_layernorm"
        return {
            f"blocks.{i}.{module}": f"layers.{i}.{name}"
            for i in range(self.config.num_layers)
            for module, name in norms.items()
        }
