"""Rotary position embeddings as a config.json states them, read as transformers 5 reads them. Introduced in chapter 1."""

from __future__ import annotations

import math
from typing import Any

# What each rope_type must say beside rope_theta. Types that are not listed are refused.
ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "attention_factor",
    ),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def read_rope(raw: dict[str, Any], default_theta: float = 1e4) -> tuple[Any, dict[str, Any] | None]:
    """(rope_theta, rope_scaling) of a Llama config.json; rope_scaling is None for plain RoPE.

    Where keys compete, the order is that of transformers:
    `rope_scaling`, unless empty, replaces `rope_parameters`;
    `rope_theta` inside that dict comes before the one at the top level, then `default_theta`;
    `original_max_position_embeddings` at the top level comes before the one in the dict,
    then `max_position_embeddings`.
    Raises ValueError, naming the key, for what transformers rejects or what is not implemented here.
    """
    rope: dict[str, Any] = {}
    for key in ("rope_parameters", "rope_scaling"):  # the later one wins
        value = raw.get(key)
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"{key} must be an object, got {value!r}")
        for name, inner in (value or {}).items():
            if isinstance(inner, dict):
                raise ValueError(f"{key}[{name!r}] must be no object: one RoPE serves all layers")
        rope = value or rope
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ROPE_KEYS:
        raise ValueError(f"rope_type must be one of {list(ROPE_KEYS)}, got {kind!r}")
    # transformers applies this share of head_dim for some rope types and ignores it for others.
    share = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if share not in (None, 1):
        raise ValueError(f"partial_rotary_factor must be 1, got {share!r}")
    theta = rope.get("rope_theta", raw.get("rope_theta", default_theta))
    if kind == "default":
        return theta, None
    scaling = {key: rope[key] for key in ROPE_KEYS[kind] if key in rope}
    if kind in ("llama3", "yarn"):
        key = "original_max_position_embeddings"
        scaling[key] = raw.get(key, rope.get(key, raw["max_position_embeddings"]))
    if kind == "yarn":
        if isinstance(theta, (int, float)) and theta <= 1:
            raise ValueError(f"rope_theta must be > 1 for yarn, got {theta!r}")
        _complete_yarn(scaling, rope, raw["max_position_embeddings"])
    return theta, {"rope_type": kind, **scaling}


def _complete_yarn(scaling: dict[str, Any], rope: dict[str, Any], longest: int) -> None:
    """Fill in what a YaRN config may leave out. `attention_factor` multiplies cosines and sines."""
    original = scaling["original_max_position_embeddings"]
    if "factor" in scaling and scaling["factor"] is None:
        scaling["factor"] = longest / _number("original_max_position_embeddings", original)
    scaling["beta_fast"] = rope.get("beta_fast") or 32
    scaling["beta_slow"] = rope.get("beta_slow") or 1
    scaling["truncate"] = rope.get("truncate", True)
    if not isinstance(scaling["truncate"], bool):
        raise ValueError(f"rope_scaling['truncate'] must be a bool, got {scaling['truncate']!r}")
    if scaling.get("attention_factor") is None:
        factor = _number("factor", scaling.get("factor"))
        scales = rope.get("mscale"), rope.get("mscale_all_dim")
        if all(scales):
            above, below = (_magnitude(factor, _number("mscale", x)) for x in scales)
            scaling["attention_factor"] = above / below
        else:
            scaling["attention_factor"] = _magnitude(factor, 1.0)


def _magnitude(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _number(key: str, value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value < float("inf"):
        raise ValueError(f"rope_scaling[{key!r}] must be a number > 0, got {value!r}")
    return value


def check_rope(scaling: dict[str, Any] | None) -> None:
    """Raises ValueError, naming the key, for a `rope_scaling` that lacks a number or has one out of range."""
    if scaling is None:
        return
    for key in ROPE_KEYS[scaling["rope_type"]]:
        _number(key, scaling.get(key))
    if scaling["rope_type"] == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        if high <= low:
            raise ValueError(
                f"rope_scaling['high_freq_factor'] must be > low_freq_factor, got {high} and {low}"
            )
