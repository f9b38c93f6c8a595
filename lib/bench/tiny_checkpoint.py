"""A checkpoint of a few thousand random parameters, with which tests run chapters at smoke scale.

Introduced in chapter 5.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from lib.models.checkpoint import build_model
from lib.models.config import load_config


def tiny_checkpoint(folder: Path, positions: int, vocab_size: int = 1000, std: float = 0.5) -> str:
    """Write a GPT-2 with seeded random weights into `folder`, and return its path.

    It has two layers of width 64 and no tokenizer, and its last token ends an answer. positions: the
    longest sequence. std: of the weights; the larger, the less even the next-token probabilities.
    """
    config = {"model_type": "gpt2", "vocab_size": vocab_size, "n_positions": positions}
    config |= {"n_embd": 64, "n_layer": 2, "n_head": 4, "eos_token_id": vocab_size - 1}
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    shapes = build_model(load_config(folder)).checkpoint_shapes()
    weights = {
        name: std * torch.randn(shape, generator=generator) for name, shape in shapes.items()
    }
    save_file(weights, folder / "model.safetensors")
    return str(folder)
