"""The Llama family: RoPE, RMSNorm, SwiGLU, grouped-query attention. SmolLM2 is one of them.

Touvron et al. 2023 (Llama), Su et al. 2021 (RoPE), Zhang & Sennrich 2019 (RMSNorm), Shazeer 2020 (SwiGLU),
Ainslie et al. 2023 (GQA). Introduced in chapter 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.core.attention import Attention
from lib.core.batch import Batch
from lib.models.config import ModelConfig
from lib.models.rope_scaling import rope_magnitude, scaled_frequencies


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rope_frequencies(config: ModelConfig) -> Tensor:
    """Angular frequency of each of the D/2 rotated pairs, radians per position: float32 [D/2]."""
    d = config.head_dim
    freq = 1.0 / config.rope_theta ** (torch.arange(0, d, 2, dtype=torch.float32) / d)
    return scaled_frequencies(freq, config.rope_theta, config.rope_scaling)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x[i], x[i + D/2]) by its angle.

    x [T, H, D]; cos, sin [T, 1, D/2].
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        d, heads, kv_heads, size = (
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
        )
        self.layer, self.num_heads, self.num_kv_heads, self.head_dim = layer, heads, kv_heads, size
        self.attention_norm = RMSNorm(d, config.norm_eps)
        # One matmul for q, k and v, one for gate and up: the same weights are read, in fewer and larger operations.
        self.qkv = nn.Linear(d, (heads + 2 * kv_heads) * size, bias=config.attention_bias)
        self.proj = nn.Linear(heads * size, d, bias=config.output_bias)
        self.mlp_norm = RMSNorm(d, config.norm_eps)
        self.gate_up = nn.Linear(d, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.down = nn.Linear(config.intermediate_size, d, bias=config.mlp_bias)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, batch: Batch, attention: Attention
    ) -> Tensor:
        n, heads, kv_heads = x.shape[0], self.num_heads, self.num_kv_heads
        qkv = self.qkv(self.attention_norm(x)).view(n, -1, self.head_dim)
        qk, v = qkv.split((heads + kv_heads, kv_heads), dim=1)
        # q and k turn by the same angle.
        q, k = rotate(qk, cos, sin).split((heads, kv_heads), dim=1)
        y = attention(self.layer, q, k, v, batch).reshape(n, -1)
        x = x + self.proj(y)
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    """`model(batch, attention) -> logits [N, V]`, at `batch.logits_indices` only."""

    block: type[Block] = Block

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(self.block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.token_embedding.weight
        for name, table in self.fresh_buffers(config).items():
            self.register_buffer(name, table, persistent=False)

    @staticmethod
    def fresh_buffers(config: ModelConfig) -> dict[str, Tensor]:
        """Cosines and sines of every position's angles, float32 [positions, D/2]: positions are integers, so a table."""
        angles = torch.outer(
            torch.arange(config.max_position_embeddings, dtype=torch.float32),
            rope_frequencies(config),
        )
        magnitude = rope_magnitude(config.rope_scaling)
        return {"cos_table": magnitude * angles.cos(), "sin_table": magnitude * angles.sin()}

    def forward(self, batch: Batch, attention: Attention) -> Tensor:
        x = self.token_embedding(batch.input_ids)
        cos = self.cos_table[batch.positions].unsqueeze(1).to(x.dtype)
        sin = self.sin_table[batch.positions].unsqueeze(1).to(x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin, batch, attention)
        return self.lm_head(self.norm(x[batch.logits_indices]))

    def checkpoint_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor that a Hugging Face checkpoint of this model holds."""
        c, d, f = self.config, self.config.hidden_size, self.config.intermediate_size
        q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "embed_tokens.weight": (c.vocab_size, d),
            "norm.weight": (d,),
        }
        for i in range(c.num_layers):
            p = f"layers.{i}."
            shapes |= {
                p + "input_layernorm.weight": (d,),
                p + "post_attention_layernorm.weight": (d,),
            }
            for name, out, into, bias in (
                ("self_attn.q_proj", q, d, c.attention_bias),
                ("self_attn.k_proj", kv, d, c.attention_bias),
                ("self_attn.v_proj", kv, d, c.attention_bias),
                ("self_attn.o_proj", d, q, c.output_bias),
                ("mlp.gate_proj", f, d, c.mlp_bias),
                ("mlp.up_proj", f, d, c.mlp_bias),
                ("mlp.down_proj", d, f, c.mlp_bias),
            ):
                shapes[f"{p}{name}.weight"] = (out, into)
                if bias:
                    shapes[f"{p}{name}.bias"] = (out,)
        if not c.tie_word_embeddings:
            shapes["lm_head.weight"] = (c.vocab_size, d)
        return shapes

    def checkpoint_names(self) -> dict[str, tuple[str, ...]]:
        """For each module with parameters: the checkpoint's modules that lie in it, top to bottom."""
        names = {"token_embedding": ("embed_tokens",), "norm": ("norm",)}
        if not self.config.tie_word_embeddings:
            names["lm_head"] = ("lm_head",)
        for i in range(self.config.num_layers):
            for module, parts in (
                ("attention_norm", ("input_layernorm",)),
                ("mlp_norm", ("post_attention_layernorm",)),
                ("qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
                ("proj", ("self_attn.o_proj",)),
                ("down", ("mlp.down_proj",)),
                ("gate_up", ("mlp.gate_proj", "mlp.up_proj")),
            ):
                names[f"blocks.{i}.{module}"] = tuple(f"layers.{i}.{part}" for part in parts)
        return names

    @staticmethod
    def is_transposed(name: str) -> bool:
        """Whether the checkpoint keeps this module's matrix as [in, out]: no Llama's does."""
        return False

    @torch.no_grad()
    def load_checkpoint(self, tensors: dict[str, Tensor]) -> None:
        """Copy validated checkpoint tensors (names as `checkpoint_shapes`) into the parameters."""
        for path, names in self.checkpoint_names().items():
            for kind, parameter in self.get_submodule(path).named_parameters():
                parameter.copy_(torch.cat([tensors[f"{name}.{kind}"] for name in names]))
