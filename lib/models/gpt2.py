"""GPT-2: learned positions, LayerNorm before each block, GELU, as many K/V heads as query heads.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners". Introduced in chapter 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.core.attention import Attention
from lib.core.batch import Batch
from lib.models.config import ModelConfig


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        d, width = config.hidden_size, config.num_heads * config.head_dim
        self.layer, self.num_heads, self.head_dim = layer, config.num_heads, config.head_dim
        self.ln_1 = nn.LayerNorm(d, eps=config.norm_eps)
        self.qkv = nn.Linear(d, 3 * width)
        self.proj = nn.Linear(width, d)
        self.ln_2 = nn.LayerNorm(d, eps=config.norm_eps)
        self.fc_in = nn.Linear(d, config.intermediate_size)
        self.fc_out = nn.Linear(config.intermediate_size, d)

    def forward(self, x: Tensor, batch: Batch, attention: Attention) -> Tensor:
        heads = (3, self.num_heads, self.head_dim)
        q, k, v = self.qkv(self.ln_1(x)).view(-1, *heads).unbind(1)
        y = attention(self.layer, q, k, v, batch).flatten(1)
        x = x + self.proj(y)
        h = F.gelu(self.fc_in(self.ln_2(x)), approximate="tanh")
        return x + self.fc_out(h)


class GPT2(nn.Module):
    """`model(batch, attention) -> logits [N, V]`, at `batch.logits_indices` only."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.token_embedding.weight

    @staticmethod
    def fresh_buffers(config: ModelConfig) -> dict[str, Tensor]:
        """GPT-2's positions are parameters: it needs no tables."""
        return {}

    def forward(self, batch: Batch, attention: Attention) -> Tensor:
        x = self.token_embedding(batch.input_ids) + self.position_embedding(batch.positions)
        for block in self.blocks:
            x = block(x, batch, attention)
        return self.lm_head(self.ln_f(x[batch.logits_indices]))

    def checkpoint_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor that a Hugging Face checkpoint of this model holds.

        Hugging Face keeps OpenAI's Conv1D, whose weight is [in, out]: the transpose of nn.Linear's [out, in].
        """
        c, d = self.config, self.config.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "wte.weight": (c.vocab_size, d),
            "wpe.weight": (c.max_position_embeddings, d),
            "ln_f.weight": (d,),
            "ln_f.bias": (d,),
        }
        for i in range(c.num_layers):
            for name, shape in (
                ("ln_1", (d,)),
                ("attn.c_attn", (d, 3 * d)),
                ("attn.c_proj", (d, d)),
                ("ln_2", (d,)),
                ("mlp.c_fc", (d, c.intermediate_size)),
                ("mlp.c_proj", (c.intermediate_size, d)),
            ):
                shapes[f"h.{i}.{name}.weight"] = shape
                shapes[f"h.{i}.{name}.bias"] = shape[-1:]
        if not c.tie_word_embeddings:
            shapes["lm_head.weight"] = (c.vocab_size, d)
        return shapes

    def checkpoint_names(self) -> dict[str, tuple[str, ...]]:
        """For each module with parameters: the checkpoint's module."""
        names = {"token_embedding": "wte", "position_embedding": "wpe", "ln_f": "ln_f"}
        if not self.config.tie_word_embeddings:
            names["lm_head"] = "lm_head"
        for i in range(self.config.num_layers):
            for module, name in (
                ("ln_1", "ln_1"),
                ("qkv", "attn.c_attn"),
                ("proj", "attn.c_proj"),
                ("ln_2", "ln_2"),
                ("fc_in", "mlp.c_fc"),
                ("fc_out", "mlp.c_proj"),
            ):
                names[f"blocks.{i}.{module}"] = f"h.{i}.{name}"
        return {path: (name,) for path, name in names.items()}

    @staticmethod
    def is_transposed(name: str) -> bool:
        """Whether the checkpoint keeps this module's matrix as [in, out]."""
        return ".c_" in name

    @torch.no_grad()
    def load_checkpoint(self, tensors: dict[str, Tensor]) -> None:
        """Copy validated checkpoint tensors (names as `checkpoint_shapes`) into the parameters."""
        for path, (name,) in self.checkpoint_names().items():
            for kind, parameter in self.get_submodule(path).named_parameters():
                tensor = tensors[f"{name}.{kind}"]
                matrix = kind == "weight" and self.is_transposed(name)
                parameter.copy_(tensor.T if matrix else tensor)
