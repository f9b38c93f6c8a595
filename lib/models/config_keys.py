"""From the keys of a config.json to the fields of `lib.models.config.ModelConfig`. Introduced in chapter 1."""

from __future__ import annotations

from typing import Any

from lib.models.families import FAMILIES
from lib.models.rope_config import read_rope

_LAYER_TYPES = ("full_attention", "sliding_attention")


def gpt2_fields(raw: dict[str, Any]) -> dict[str, Any]:
    """ModelConfig's arguments for a GPT-2. Raises KeyError for a missing key, ValueError for a bad value."""
    hidden, heads = raw["n_embd"], raw["n_head"]
    return {
        "vocab_size": raw["vocab_size"],
        "hidden_size": hidden,
        "num_layers": raw["n_layer"],
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": _head_dim(raw, "n_embd", "n_head"),
        "intermediate_size": raw.get("n_inner") or 4 * hidden,
        "max_position_embeddings": raw["n_positions"],
        "norm_eps": raw.get("layer_norm_epsilon", 1e-5),
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": _flag(raw, "tie_word_embeddings", True),
    }


def llama_fields(raw: dict[str, Any]) -> dict[str, Any]:
    """ModelConfig's arguments for a Llama or a family that differs from it in details. Errors as above."""
    family, defaults = raw["model_type"], FAMILIES[raw["model_type"]].defaults
    heads, layers = raw["num_attention_heads"], _count(raw, "num_hidden_layers")
    head_dim = raw.get("head_dim", defaults.get("head_dim"))
    if head_dim is None and "head_dim" not in defaults:
        head_dim = _head_dim(raw, "hidden_size", "num_attention_heads")
    kv_heads = raw.get("num_key_value_heads", defaults.get("num_key_value_heads"))
    rope_theta, rope_scaling = read_rope(raw, defaults.get("rope_theta", 1e4))
    bias = _flag(raw, "attention_bias", False)
    rope_layers = _rope_layers(raw, layers) if family == "smollm3" else ()
    return {
        "vocab_size": raw["vocab_size"],
        "hidden_size": raw["hidden_size"],
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": heads if kv_heads is None else kv_heads,
        "head_dim": head_dim,
        "intermediate_size": raw["intermediate_size"],
        "max_position_embeddings": raw["max_position_embeddings"],
        "norm_eps": raw.get("rms_norm_eps", defaults.get("rms_norm_eps", 1e-6)),
        "rope_theta": rope_theta,
        "rope_scaling": rope_scaling,
        "rope_layers": rope_layers,
        "attention_bias": bias or family == "qwen2",
        "output_bias": bias,
        "mlp_bias": _flag(raw, "mlp_bias", False),
        "qk_norm": {"qwen3": "head", "olmo2": "projection"}.get(family),
        "post_norm": family == "olmo2",
        "layer_windows": _layer_windows(raw, layers, rope_layers),
        "tie_word_embeddings": _flag(
            raw, "tie_word_embeddings", defaults.get("tie_word_embeddings", False)
        ),
    }


def _rope_layers(raw: dict[str, Any], layers: int) -> tuple[bool, ...]:
    """Whether each layer rotates q and k: `no_rope_layers` has a 1 where it does, a 0 where it does not."""
    value = raw.get("no_rope_layers")
    if value is None:
        interval = _count(raw, "no_rope_layer_interval", 4)
        return tuple((layer + 1) % interval != 0 for layer in range(layers))
    if not isinstance(value, list) or len(value) < layers or not all(x in (0, 1) for x in value):
        raise ValueError(
            f"no_rope_layers must be a list of 0 and 1 for each of {layers} layers, got {value!r}"
        )
    return tuple(bool(x) for x in value[:layers])


def _layer_windows(
    raw: dict[str, Any], layers: int, rope_layers: tuple[bool, ...]
) -> tuple[int | None, ...]:
    """Each layer's sliding window in tokens, None where a layer sees all; empty if no layer has one."""
    family = FAMILIES[raw["model_type"]]
    if "sliding_window" not in family.read:
        return ()
    window = raw.get("sliding_window", family.defaults.get("sliding_window"))
    if "use_sliding_window" in family.read and not _flag(raw, "use_sliding_window", False):
        window = None
    if window is not None and (not isinstance(window, int) or window is True or window < 1):
        raise ValueError(f"sliding_window must be None or an integer >= 1, got {window!r}")
    types = raw.get("layer_types")
    if types is None:
        if raw["model_type"] == "mistral":
            slides = [True] * layers
        elif raw["model_type"] == "smollm3":
            slides = [not rotated for rotated in rope_layers]
        else:
            first = raw.get("max_window_layers", 28)
            if not isinstance(first, int) or isinstance(first, bool):
                raise ValueError(f"max_window_layers must be an integer, got {first!r}")
            slides = [layer >= first for layer in range(layers)]
    else:
        if (
            not isinstance(types, list)
            or len(types) != layers
            or not all(kind in _LAYER_TYPES for kind in types)
        ):
            raise ValueError(
                f"layer_types must be a list of {layers} of {list(_LAYER_TYPES)}, got {types!r}"
            )
        slides = [kind == "sliding_attention" for kind in types]
        if any(slides) and window is None:
            raise ValueError("layer_types names 'sliding_attention', but sliding_window is not set")
    if window is None or not any(slides):
        return ()
    return tuple(window if sliding else None for sliding in slides)


def _flag(raw: dict[str, Any], key: str, default: bool) -> bool:
    value = raw.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false, got {value!r}")
    return value


def _count(raw: dict[str, Any], key: str, *default: int) -> int:
    value = raw.get(key, *default) if default else raw[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key} must be a positive integer, got {value!r}")
    return value


def _head_dim(raw: dict[str, Any], width: str, heads: str) -> int:
    size, number = _count(raw, width), _count(raw, heads)
    if size % number:
        raise ValueError(f"{width} must be a multiple of {heads}, got {size} and {number}")
    return size // number
