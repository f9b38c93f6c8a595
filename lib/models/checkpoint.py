"""From a name or a folder to a model with weights, every tensor's name and shape checked on the way.

Introduced in chapter 1.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lib.models.config import ModelConfig, load_config
from lib.models.gguf import WHEEL, smollm2_folder
from lib.models.gpt2 import GPT2
from lib.models.llama import Llama
from lib.models.tokenizer import load_tokenizer

_MODELS = {"gpt2": GPT2, "llama": Llama}
_HUB_IDS = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct", "gpt2": "openai-community/gpt2"}
_PREFIXES = (
    "transformer.",
    "model.",
)  # what a checkpoint with a language-model head puts before its body's names
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
    """Load "smollm2", "gpt2", a checkpoint folder or a Hugging Face id.

    "gpt2" gets seeded random weights, with a RandomWeightsWarning, where the hub cannot be reached.
    Raises FileNotFoundError if there is no such model, ValueError if what is there is not one of ours.
    """
    folder = _find(str(name))
    if folder is None:
        warnings.warn(
            "GPT-2's weights are RANDOM (the Hugging Face hub cannot be reached): "
            "speed and memory are true, text is not",
            RandomWeightsWarning,
            stacklevel=3,
        )
        model = random_model(GPT2_CONFIG)
        return LoadedModel(model.to(device=device, dtype=dtype), GPT2_CONFIG, None, "random", None)
    config = load_config(folder)
    with torch.device("meta"):
        shapes = _MODELS[config.architecture](config).checkpoint_shapes()
    tensors = read_tensors(folder, shapes)
    model = build_model(config, device="cpu", dtype=dtype)
    model.load_checkpoint(tensors)
    return LoadedModel(model.to(device), config, load_tokenizer(folder), "real", folder)


def build_model(
    config: ModelConfig, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """The config's architecture with parameters yet to be filled, without gradients."""
    with torch.device("meta"):  # no time for an initialisation that is overwritten anyway
        model = _MODELS[config.architecture](config)
    buffers = _MODELS[config.architecture].fresh_buffers(config)
    model = model.to(dtype).to_empty(device=device)
    for (
        key,
        value,
    ) in buffers.items():  # float32 in any model: bfloat16 cannot tell position 257 from 256
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


def read_tensors(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Read the folder's safetensors (one file, or shards with an index) and check them against `shapes`.

    Raises FileNotFoundError without any, ValueError with the lists of what is missing, unexpected or misshapen.
    """
    files = _safetensors_files(folder)
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():
                    name = next((key.removeprefix(p) for p in _PREFIXES if key.startswith(p)), key)
                    tensors[name] = opened.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{file} cannot be read (truncated, or not safetensors): {error}"
            ) from None
    tensors = {name: t for name, t in tensors.items() if not _is_buffer(name)}
    _check_tied_head(tensors, shapes, folder)
    problems = []
    if missing := sorted(shapes.keys() - tensors.keys()):
        problems.append(f"missing: {_listing(missing)}")
    if extra := sorted(tensors.keys() - shapes.keys()):
        problems.append(f"unexpected: {_listing(extra)}")
    if misshapen := [
        f"{name} is {list(tensors[name].shape)}, should be {list(shapes[name])}"
        for name in sorted(shapes.keys() & tensors.keys())
        if tuple(tensors[name].shape) != tuple(shapes[name])
    ]:
        problems.append(f"misshapen: {_listing(misshapen)}")
    if problems:
        raise ValueError(
            f"the checkpoint in {folder} does not fit its config.json; " + "; ".join(problems)
        )
    return tensors


def _find(name: str) -> Path | None:
    """The folder that a name means; None for GPT-2 where no hub answers."""
    path = Path(name).expanduser()
    if name not in _HUB_IDS and path.is_dir():
        return path
    if name == "smollm2" and (folder := smollm2_folder()) is not None:
        return folder
    if name not in _HUB_IDS and (
        path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    ):
        raise FileNotFoundError(
            f"model {name!r} is no folder: expected one with config.json and *.safetensors"
        )
    try:
        return _download(_HUB_IDS.get(name, name))
    except (
        Exception
    ) as error:  # the hub client raises its own, requests' and OS errors for "cannot be reached"
        if name == "gpt2":
            return None
        hint = f" (or install the wheel {WHEEL})" if name == "smollm2" else ""
        raise FileNotFoundError(
            f"model {name!r} is neither {sorted(_HUB_IDS)}, nor a folder, nor to be had from the Hugging Face hub"
            f"{hint}: {str(error).splitlines()[0][:200]}"
        ) from None


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "tokenizer*", "vocab*", "merges.txt", "*.jinja"]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns, etag_timeout=5))
    except Exception:  # a copy that an earlier run fetched is as good
        return Path(snapshot_download(hub_id, allow_patterns=patterns, local_files_only=True))


def _safetensors_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        file = folder / "model.safetensors"
        if not file.is_file():
            raise FileNotFoundError(
                f"no model.safetensors and no model.safetensors.index.json in {folder}"
            )
        return [file]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index} is not a safetensors index: {error!r}") from None
    files = [folder / name for name in names]
    if absent := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f"{index.name} in {folder} names files that are not there: {_listing(absent)}"
        )
    return files


def _is_buffer(name: str) -> bool:
    """Constants that old checkpoints carry along: GPT-2's 12 causal masks among its 160 tensors, RoPE's frequencies."""
    return name.endswith((".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq"))


def _check_tied_head(
    tensors: dict[str, Tensor], shapes: Mapping[str, tuple[int, ...]], folder: Path
) -> None:
    """A tied checkpoint may repeat its embedding as lm_head: drop the copy, refuse anything else."""
    if "lm_head.weight" not in tensors or "lm_head.weight" in shapes:
        return
    embedding = tensors.get("embed_tokens.weight", tensors.get("wte.weight"))
    if embedding is None or not torch.equal(tensors["lm_head.weight"], embedding):
        raise ValueError(
            f"the checkpoint in {folder} has an lm_head.weight of its own, "
            "but its config.json says tie_word_embeddings"
        )
    del tensors["lm_head.weight"]


def _listing(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
