"""What a model's shape is: the few numbers of a Hugging Face config.json that the forward pass needs.

Introduced in chapter 1.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.models.rope_config import check_rope, read_rope

# The key of config.json and the values whose arithmetic lib/models implements. Anything else is refused, because a
# model that runs with the wrong activation or position encoding is worse than one that does not load.
_SUPPORTED = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        # A numerical choice of the reference implementation; the function is the same.
        "reorder_and_upcast_attn": (False, True),
    },
    "llama": {
        "hidden_act": ("silu",),
        "pretraining_tp": (1,),
    },
}
# What `architectures` may name for each model_type. A renamed Mistral, Gemma or Granite has the same keys and other
# arithmetic. A config.json without the key is taken at its model_type.
_ARCHITECTURES = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Model"),
    "llama": ("LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel"),
}


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder-only transformer.

    Sizes are counts (of tokens, features, layers or heads), `norm_eps` and `rope_theta` are pure numbers.
    `rope_scaling` is None or the Hugging Face dict of a `llama3` or `linear` scaling.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "intermediate_size",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads, got {self.num_heads} and {self.num_kv_heads}"
            )
        if self.architecture == "llama" and self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary embeddings, got {self.head_dim}")
        check_rope(self.rope_scaling)
        _positive("rope_theta", self.rope_theta)
        _positive("norm_eps", self.norm_eps)
        for token_id in self.eos_token_ids:
            if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
                raise ValueError(
                    f"eos_token_id must be an integer >= 0 or a list of them, got {token_id!r}"
                )

    def kv_bytes_per_token(self, element_size: int) -> int:
        """Bytes of K and V that one token leaves behind over all layers, at `element_size` bytes an element."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * element_size


def _positive(name: str, value: object) -> None:
    if (
        not isinstance(value, (int, float))
        or isinstance(value, bool)
        or not 0 < value < float("inf")
    ):
        raise ValueError(f"{name} must be a number > 0, got {value!r}")


def _head_dim(raw: dict[str, Any], width: str, heads: str) -> int:
    for key in (width, heads):
        if not isinstance(raw[key], int) or raw[key] < 1:
            raise ValueError(f"{key} must be a positive integer, got {raw[key]!r}")
    if raw[width] % raw[heads]:
        raise ValueError(
            f"{width} must be a multiple of {heads}, got {raw[width]} and {raw[heads]}"
        )
    return raw[width] // raw[heads]


def load_config(folder: str | Path) -> ModelConfig:
    """Read `config.json` (and `generation_config.json`, if there) of a Hugging Face checkpoint folder.

    Raises FileNotFoundError without a config.json, ValueError for an unreadable one, an unknown architecture or a
    variant whose arithmetic is not implemented here.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no config.json in {folder}: a checkpoint folder holds config.json and *.safetensors"
        )
    raw = _read_json(path)
    generation_path = path.with_name("generation_config.json")
    generation = _read_json(generation_path) if generation_path.is_file() else {}
    architecture = raw.get("model_type")
    if architecture not in _SUPPORTED:
        raise ValueError(
            f"{path}: model_type must be one of {sorted(_SUPPORTED)}, got {architecture!r}"
        )
    named, allowed = raw.get("architectures") or [], _ARCHITECTURES[architecture]
    if not isinstance(named, list) or not all(name in allowed for name in named):
        raise ValueError(
            f"{path}: architectures must be of {list(allowed)} for model_type {architecture!r}, "
            f"got {named!r}"
        )
    for key, allowed in _SUPPORTED[architecture].items():
        if key in raw and raw[key] not in allowed:
            raise ValueError(f"{path}: {key} must be one of {list(allowed)}, got {raw[key]!r}")
    try:
        return (_gpt2 if architecture == "gpt2" else _llama)(raw, _eos_ids(generation, raw))
    except KeyError as missing:
        raise ValueError(f"{path}: missing key {missing}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def quantization_config(folder: str | Path) -> dict[str, Any] | None:
    """What config.json says of quantised weights; None for a checkpoint of floats, or without the file."""
    path = Path(folder) / "config.json"
    value = _read_json(path).get("quantization_config") if path.is_file() else None
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{path}: quantization_config must be an object, got {value!r}")
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(data).__name__}")
    return data


def _eos_ids(generation: dict[str, Any], raw: dict[str, Any]) -> tuple[int, ...]:
    """generation_config.json wins: chat models often end a turn with a token that config.json does not name."""
    value = generation.get("eos_token_id")
    if value is None:
        value = raw.get("eos_token_id")
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def _gpt2(raw: dict[str, Any], eos: tuple[int, ...]) -> ModelConfig:
    hidden, heads = raw["n_embd"], raw["n_head"]
    return ModelConfig(
        architecture="gpt2",
        vocab_size=raw["vocab_size"],
        hidden_size=hidden,
        num_layers=raw["n_layer"],
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=_head_dim(raw, "n_embd", "n_head"),
        intermediate_size=raw.get("n_inner") or 4 * hidden,
        max_position_embeddings=raw["n_positions"],
        norm_eps=raw.get("layer_norm_epsilon", 1e-5),
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=raw.get("tie_word_embeddings", True),
        bos_token_id=raw.get("bos_token_id"),
        eos_token_ids=eos,
    )


def _llama(raw: dict[str, Any], eos: tuple[int, ...]) -> ModelConfig:
    hidden, heads = raw["hidden_size"], raw["num_attention_heads"]
    head_dim = raw.get("head_dim")
    if head_dim is None:
        head_dim = _head_dim(raw, "hidden_size", "num_attention_heads")
    rope_theta, rope_scaling = read_rope(raw)
    return ModelConfig(
        architecture="llama",
        vocab_size=raw["vocab_size"],
        hidden_size=hidden,
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        intermediate_size=raw["intermediate_size"],
        max_position_embeddings=raw["max_position_embeddings"],
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        attention_bias=raw.get("attention_bias", False),
        mlp_bias=raw.get("mlp_bias", False),
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        bos_token_id=raw.get("bos_token_id"),
        eos_token_ids=eos,
    )
