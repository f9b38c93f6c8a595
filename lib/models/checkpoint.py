"""A model with its weights and tokenizer, from a name or a folder.

Introduced in chapter 1.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib.models.config import ModelConfig, load_config, quantization_config
from lib.models.gpt2 import GPT2
from lib.models.hub import HubUnreachable, download
from lib.models.llama import Llama
from lib.models.llama_variants import LlamaVariant
from lib.models.moe import MoeLlama
from lib.models.smollm2 import WHEEL, gguf_folder, smollm2_file, smollm2_folder
from lib.models.tokenizer import load_tokenizer
from lib.models.weights import read_tensors

_HUB_IDS = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct", "gpt2": "openai-community/gpt2"}
_RANDOM_SEED = 0

GPT2_CONFIG = ModelConfig(
    architecture="gpt2",
    vocab_size=50257,
    hidden_size=768,
    num_layers=12,
    num_heads=12,
    num_kv_heads=12,
    head_dim=64,
    intermediate_size=3072,
    max_position_embeddings=1024,
    attention_bias=True,
    mlp_bias=True,
    bos_token_id=50256,
    eos_token_ids=(50256,),
)


class RandomWeightsWarning(UserWarning):
    """The model's speed is real; what it says is not."""


class QuantizedCheckpoint(ValueError):
    """The checkpoint in `folder` holds quantised weights, made by `method` (as its config.json names it)."""

    def __init__(self, folder: Path, method: object) -> None:
        super().__init__(f"the checkpoint in {folder} is quantised already, by {method!r}")
        self.folder, self.method = folder, method


@dataclass
class LoadedModel:
    """A model ready to run. `weights`: "real" or "random". `folder`: where it came from, None for random weights."""

    model: nn.Module
    config: ModelConfig
    tokenizer: Any | None
    weights: str
    folder: Path | None


def load_model(
    name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedModel:
    """Load "smollm2", "gpt2", a checkpoint folder, a .gguf file or a Hugging Face id.

    "gpt2" gets seeded random weights, with a RandomWeightsWarning, where the hub cannot be reached.
    Raises FileNotFoundError if there is no such model; ValueError if what is there is not one of
    ours, or broken; QuantizedCheckpoint if its weights are not floats; OSError if it cannot be
    fetched or written (full disk, no permission).
    """
    try:
        folder = find_folder(name)
    except HubUnreachable as error:
        if name != "gpt2":
            raise
        warnings.warn(
            f"GPT-2's weights are RANDOM: speed and memory are true, text is not ({error})",
            RandomWeightsWarning,
            stacklevel=3,
        )
        model = random_model(GPT2_CONFIG)
        return LoadedModel(model.to(device=device, dtype=dtype), GPT2_CONFIG, None, "random", None)
    if (quantized := quantization_config(folder)) is not None:
        raise QuantizedCheckpoint(folder, quantized.get("quant_method"))
    config = load_config(folder)
    tensors = read_tensors(folder, empty_model(config).checkpoint_shapes())
    model = build_model(config, device="cpu", dtype=dtype)
    model.load_checkpoint(tensors)
    return LoadedModel(model.to(device), config, load_tokenizer(folder), "real", folder)


def empty_model(config: ModelConfig) -> nn.Module:
    """The config's architecture with parameters on the meta device: shapes without memory."""
    with torch.device("meta"):
        return _model_class(config)(config)


def _model_class(config: ModelConfig) -> type[nn.Module]:
    # Other architectures differ from Llama in details that the config names.
    models = {"gpt2": GPT2, "llama": Llama}
    return models.get(config.architecture, MoeLlama if config.num_experts else LlamaVariant)


def build_model(
    config: ModelConfig, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """The config's architecture with parameters yet to be filled, without gradients."""
    model = empty_model(config)
    buffers = model.fresh_buffers(config)
    model = model.to(dtype).to_empty(device=device)
    for key, value in buffers.items():
        # float32 in any model: bfloat16 cannot tell position 257 from 256.
        setattr(model, key, value.to(device))
    if config.tie_word_embeddings:
        model.lm_head.weight = model.token_embedding.weight
    return model.requires_grad_(False).eval()


def random_model(config: ModelConfig, seed: int = _RANDOM_SEED) -> nn.Module:
    """A float32 model with the seeded normal initialisation (0.02) of GPT-2's paper: norms 1, biases 0."""
    model = build_model(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, 0.02, generator=generator)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return model


def find_gguf(name: str | Path) -> Path | None:
    """The GGUF file that a name means: SmolLM2's, or a path that ends with .gguf. None for any other name.

    Raises FileNotFoundError for a file that is not there.
    """
    if str(name) == "smollm2":
        if (file := smollm2_file()) is None:
            raise FileNotFoundError(f"SmolLM2's GGUF file is in the wheel {WHEEL}: install it")
        return file
    path = Path(name).expanduser()
    if path.suffix != ".gguf":
        return None
    if not path.is_file():
        raise FileNotFoundError(f"model {str(name)!r}: there is no such file")
    return path


def find_folder(name: str | Path) -> Path:
    """The folder that a name means. Raises HubUnreachable, FileNotFoundError or OSError, each with its reason."""
    name, path = str(name), Path(name).expanduser()
    if name not in _HUB_IDS and path.is_dir():
        return path
    if path.suffix == ".gguf":
        return gguf_folder(find_gguf(name))
    if name == "smollm2" and (folder := smollm2_folder()) is not None:
        return folder
    if name not in _HUB_IDS and (
        path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    ):
        raise FileNotFoundError(
            f"model {name!r} is no folder: expected one with config.json and *.safetensors"
        )
    try:
        return download(_HUB_IDS.get(name, name))
    except FileNotFoundError as error:
        allowed = f"must be one of {sorted(_HUB_IDS)}, a folder or a model on the Hugging Face hub"
        known = "cannot be loaded" if name in _HUB_IDS else allowed
        hint = f" (install the wheel {WHEEL} instead)" if name == "smollm2" else ""
        raise type(error)(f"model {name!r} {known}: {error}{hint}") from None
