"""A model of the Llama family in a GGUF file, turned into a Hugging Face checkpoint folder.

transformers reads GGUF files too. From SmolLM2's file it gets the same tensors, bit for bit. But its tokenizer does not
split numbers into digits as the model's own does, and it drops without a word what it does not know: RoPE scaling,
rope_freqs, experts. So the file is read here, and what this module does not understand is an error.
Introduced in chapter 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lib.models.config import load_config
from lib.models.gguf_families import family_keys, split_experts, without_offset
from lib.models.gguf_names import ARCHITECTURES, MODEL_TYPES, hf_name, interleaved_heads
from lib.models.gguf_tokenizer import save_tokenizer
from lib.models.llama import rope_frequencies

_ROPE_FACTORS = "rope_freqs.weight"  # Llama 3's RoPE scaling, [D/2] divisors of the frequencies
# The three numbers of that scaling that the file does not keep. All published Llama 3 checkpoints have these.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def convert(gguf_file: Path, folder: Path, weights: bool = True) -> None:
    """Write config.json, generation_config.json, model.safetensors (float32) and the tokenizer of a GGUF file.

    Without `weights`, all but model.safetensors. Raises ValueError, with the file's name and the
    key or tensor, for what is none of the architectures implemented here.
    """
    fields, tensors = read_gguf(gguf_file)
    with naming(gguf_file):
        config = _config(fields, tensors)
        ids = {k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
        (folder / "config.json").write_text(json.dumps(config, indent=1))
        (folder / "generation_config.json").write_text(json.dumps(ids))
        _check(folder, tensors)
        if weights:
            converted = dict(_convert_tensor(item, config) for item in tensors.values())
            save_file(converted, folder / "model.safetensors", metadata={"format": "pt"})
        save_tokenizer(fields, folder)


def read_gguf(gguf_file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(metadata, tensors by name) of a GGUF file; a tensor's `data` is mapped, not read. Experts: see `split_experts`.

    Raises ValueError, with the file's name, for one that cannot be read.
    """
    from gguf import GGUFReader  # imported here: needed once per machine

    try:
        reader = GGUFReader(gguf_file)
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise ValueError(f"{gguf_file.name} is not a readable GGUF file: {error}") from None
    fields = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if fields.get(f"{fields.get('general.architecture')}.expert_count"):
        tensors = dict(split_experts(tensors))
    return fields, tensors


@contextmanager
def naming(gguf_file: Path) -> Iterator[None]:
    """Errors within become ValueErrors that begin with the file's name."""
    try:
        yield
    except KeyError as missing:
        raise ValueError(f"{gguf_file.name}: missing key {missing}") from None
    except ValueError as error:
        raise ValueError(f"{gguf_file.name}: {error}") from None


def _config(fields: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """The config.json of the file's metadata. Optional keys have llama.cpp's defaults."""
    architecture = fields.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"general.architecture must be one of {list(ARCHITECTURES)}, got {architecture!r}"
        )
    own = {
        key.removeprefix(f"{architecture}."): value
        for key, value in fields.items()
        if key.startswith(f"{architecture}.")
    }
    window = own.get("attention.sliding_window")
    if window and architecture not in ("gemma2", "gemma3"):
        raise ValueError(f"{architecture}.attention.sliding_window must be 0, got {window!r}")
    heads, width = own["attention.head_count"], own["embedding_length"]
    config = {
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": MODEL_TYPES.get(architecture, architecture),
        "dtype": "float32",
        "vocab_size": own.get("vocab_size") or len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": width,
        "num_hidden_layers": own["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": own.get("attention.head_count_kv", heads),
        "intermediate_size": own["feed_forward_length"],
        "max_position_embeddings": own["context_length"],
        "hidden_act": "silu",
        "rms_norm_eps": round(own["attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": own.get("rope.freq_base", 1e4),
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
    }
    head_dim = own.get("attention.key_length", width // heads if isinstance(heads, int) else None)
    if "attention.key_length" in own or architecture == "qwen3":  # whose default is another
        config["head_dim"] = head_dim
    config |= family_keys(architecture, own, tensors, head_dim)
    if architecture == "llama" and "num_local_experts" in config:
        config |= {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
    # In Qwen2's families it is no option, or another key.
    if "blk.0.attn_q.bias" in tensors and not architecture.startswith("qwen2"):
        config["attention_bias"] = True
    if "blk.0.ffn_up.bias" in tensors:
        config["mlp_bias"] = True
    if (scaling := _rope_scaling(own, tensors)) is not None:
        config["rope_scaling"] = scaling
    for key in ("rope.dimension_count", "attention.value_length"):
        if own.get(key, head_dim) != head_dim:
            name = f"{architecture}.{key}"
            raise ValueError(f"{name} must be the head size, {head_dim}, got {own[key]!r}")
    return config


def _rope_scaling(own: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any] | None:
    """What llama.cpp makes of its keys: a factor without a type is linear, type "none" drops the factor."""
    kind = own.get("rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise ValueError(f"rope.scaling.type must be 'none' or 'linear', got {kind!r}")
    if (scale := own.get("rope.scaling.attn_factor", 1.0)) != 1.0:
        raise ValueError(f"rope.scaling.attn_factor must be 1, got {scale!r}")
    factor = own.get("rope.scaling.factor", own.get("rope.scale_linear", 0.0))
    linear = kind == "linear" and factor not in (0.0, 1.0)
    if _ROPE_FACTORS in tensors:
        if linear:
            raise ValueError(f"both a linear RoPE scaling and the tensor {_ROPE_FACTORS}")
        factor = float(torch.tensor(tensors[_ROPE_FACTORS].data).max())
        return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    return {"rope_type": "linear", "factor": factor} if linear else None


def _check(folder: Path, tensors: dict[str, Any]) -> None:
    """Refuse a config that the engine would not load, and RoPE factors that are not those of Llama 3."""
    config = load_config(folder)
    if (item := tensors.pop(_ROPE_FACTORS, None)) is None:
        return
    plain = rope_frequencies(replace(config, rope_scaling=None))
    factors = torch.tensor(item.data)
    ours = rope_frequencies(config)
    if factors.shape != ours.shape or not torch.allclose(ours * factors, plain, rtol=1e-5, atol=0):
        raise ValueError(f"the tensor {_ROPE_FACTORS} is not Llama 3's RoPE scaling with {_LLAMA3}")


def _convert_tensor(item: Any, config: dict[str, Any]) -> tuple[str, Tensor]:
    """(Hugging Face name, float32 tensor) of a tensor such as blk.3.attn_q.weight."""
    target = hf_name(item.name, config["model_type"])
    tensor = without_offset(dequantized(item), target, config["model_type"])
    if (heads := interleaved_heads(target, config["model_type"])) is not None:
        tensor = _unpermute(tensor, config[heads])
    return target, tensor


def dequantized(item: Any) -> Tensor:
    """A tensor of the file as float32. Raises ValueError, with its name and type, where that cannot be."""
    from gguf.quants import dequantize

    try:
        return torch.from_numpy(dequantize(item.data, item.tensor_type).copy()).float()
    except (NotImplementedError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"the tensor {item.name} of type {item.tensor_type.name} cannot be read: {error}"
        ) from None


def _unpermute(weight: Tensor, heads: int) -> Tensor:
    """GGUF keeps rotated pairs side by side (2i, 2i+1), Hugging Face half a head apart (i, i + D/2)."""
    pairs = weight.view(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape).contiguous()
