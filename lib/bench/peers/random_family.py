"""A random checkpoint of any model family that transformers knows, small and hard to pass by accident. Introduced in chapter 14."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SIZES = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


@torch.no_grad()
def random_checkpoint(folder: Path, family: str, seed: int = 0, **changes: Any) -> Path:
    """Write a checkpoint of `family`, a model_type of transformers, to `folder`, and return it.

    `changes` to the config come on top of SIZES, in which no two sizes are equal by chance. Weights
    are as large as makes logits of size 10 and norms that are not 1: with the usual deviation of
    0.02, a layer that computes the wrong thing changes logits by less than a test's tolerance.
    """
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**{**SIZES, **changes}))
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() == 1:
            weight.copy_(0.3 * noise if name.endswith("bias") else 1 + 0.2 * noise)
        elif "embed" in name and family.startswith("gemma"):  # multiplied by the root of the width
            weight.copy_(noise / weight.shape[1] ** 0.5)
        elif "embed" in name or "lm_head" in name:
            weight.copy_(noise)
        else:
            weight.copy_(1.5 * noise / weight.shape[1] ** 0.5)
    model.save_pretrained(folder)
    return folder
