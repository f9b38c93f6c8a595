"""From the keys of a config.json to the fields of `lib.models.config.ModelConfig`. Introduced in chapter 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lib.models.config_values import count, even_share, flag
from lib.models.families import FAMILIES
from lib.models.gemma_config import gemma_fields
from lib.models.moe_config import MOE_FAMILIES, moe_fields
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
        "head_dim": even_share(raw, "n_embd", "n_head"),
        "intermediate_size": raw.get("n_inner") or 4 * hidden,
        "max_position_embeddings": raw["n_positions"],
        "norm_eps": raw.get("layer_norm_epsilon", 1e-5),
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": flag(raw, "tie_word_embeddings", True),
    }


def llama_fields(raw: dict[str, Any]) -> dict[str, Any]:
    """ModelConfig's arguments for a Llama or a family that differs from it in details. Errors as above."""
    family, defaults = raw["model_type"], FAMILIES[raw["model_type"]].defaults
    raw = {**defaults, **raw}
    heads, layers = raw["num_attention_heads"], count(raw, "num_hidden_layers")
    head_dim, kv_heads = raw.get("head_dim"), raw.get("num_key_value_heads")
    if head_dim is None and "head_dim" not in defaults:
        head_dim = even_share(raw, "hidden_size", "num_attention_heads")
    bias = flag(raw, "attention_bias", False)
    qkv_bias = family == "qwen2_moe" and flag(raw, "qkv_bias", True)
    rope_layers = _rope_layers(raw, layers) if family == "smollm3" else ()
    fields = {
        "vocab_size": raw["vocab_size"],
        "hidden_size": raw["hidden_size"],
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": heads if kv_heads is None else kv_heads,
        "head_dim": head_dim,
        "intermediate_size": raw["intermediate_size"],
        "max_position_embeddings": raw["max_position_embeddings"],
        "norm_eps": raw.get("rms_norm_eps", 1e-6),
        "rope_layers": rope_layers,
        "attention_bias": bias or family == "qwen2" or qkv_bias,
        "output_bias": bias,
        "mlp_bias": flag(raw, "mlp_bias", False),
        "qk_norm": {"qwen3": "head", "qwen3_moe": "head", "olmo2": "projection"}.get(family),
        "post_norm": family == "olmo2",
        "layer_windows": _layer_windows(raw, layers, rope_layers),
        "tie_word_embeddings": flag(raw, "tie_word_embeddings", False),
    }
    if family in MOE_FAMILIES:
        fields |= moe_fields(raw, layers)
    if family.startswith("gemma"):
        fields |= gemma_fields(raw)
    if "rope_theta" not in fields:
        fields["rope_theta"], fields["rope_scaling"] = read_rope(raw)
    return fields


def _rope_layers(raw: dict[str, Any], layers: int) -> tuple[bool, ...]:
    """Whether each layer rotates q and k: `no_rope_layers` has a 1 where it does, a 0 where it does not."""
    value = raw.get("no_rope_layers")
    if value is None:
        interval = count(raw, "no_rope_layer_interval", 4)
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
    window = raw.get("sliding_window")
    if "use_sliding_window" in family.read and not flag(raw, "use_sliding_window", False):
        window = None
    if window is not None and (not isinstance(window, int) or window is True or window < 1):
        raise ValueError(f"sliding_window must be None or an integer >= 1, got {window!r}")
    types = raw.get("layer_types")
    if types is None:
        slides_in = _sliding_layers(raw, rope_layers)
        slides = [slides_in(layer) for layer in range(layers)]
        needed = raw["model_type"].startswith("gemma")  # without one transformers fails, too
    else:
        if (
            not isinstance(types, list)
            or len(types) != layers
            or not all(kind in _LAYER_TYPES for kind in types)
        ):
            raise ValueError(
                f"layer_types must be a list of {layers} of {list(_LAYER_TYPES)}, got {types!r}"
            )
        slides, needed = [kind == "sliding_attention" for kind in types], True
    if needed and any(slides) and window is None:
        raise ValueError("layer_types names 'sliding_attention', but sliding_window is not set")
    if window is None or not any(slides):
        return ()
    return tuple(window if sliding else None for sliding in slides)


def _sliding_layers(raw: dict[str, Any], rope_layers: tuple[bool, ...]) -> Callable[[int], bool]:
    """Whether a layer has a window, if it has one at all, where `layer_types` is not given."""
    family = raw["model_type"]
    if family in ("mistral", "mixtral", "qwen3_moe"):
        return lambda layer: True
    if family == "smollm3":
        return lambda layer: not rope_layers[layer]
    if family == "gemma2":
        return lambda layer: layer % 2 == 0
    if family == "gemma3_text":
        pattern = count(raw, "sliding_window_pattern")
        return lambda layer: (layer + 1) % pattern != 0
    first = raw.get("max_window_layers", 28)
    if not isinstance(first, int) or isinstance(first, bool):
        raise ValueError(f"max_window_layers must be an integer, got {first!r}")
    if family == "qwen2_moe":
        return lambda layer: layer % 2 == 0 and layer < first
    return lambda layer: layer >= first
