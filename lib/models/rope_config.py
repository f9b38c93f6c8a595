"""Rotary position embeddings as a config.json states them, read as transformers 5 reads them. Introduced in chapter 1."""

from __future__ import annotations

from typing import Any

# What each rope_type must say beside rope_theta. Types that are not listed are refused.
ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def read_rope(raw: dict[str, Any]) -> tuple[Any, dict[str, Any] | None]:
    """(rope_theta, rope_scaling) of a Llama config.json; rope_scaling is None for plain RoPE.

    Where keys compete, the order is that of transformers:
    `rope_scaling`, unless empty, replaces `rope_parameters`;
    `rope_theta` inside that dict comes before the one at the top level, then 10000;
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
    theta = rope.get("rope_theta", raw.get("rope_theta", 1e4))
    if kind == "default":
        return theta, None
    scaling = {key: rope[key] for key in ROPE_KEYS[kind] if key in rope}
    if kind == "llama3":
        key = "original_max_position_embeddings"
        scaling[key] = raw.get(key, rope.get(key, raw["max_position_embeddings"]))
    return theta, {"rope_type": kind, **scaling}


def check_rope(scaling: dict[str, Any] | None) -> None:
    """Raises ValueError, naming the key, for a `rope_scaling` that lacks a number or has one out of range."""
    if scaling is None:
        return
    for key in ROPE_KEYS[scaling["rope_type"]]:
        value = scaling.get(key)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 < value < float("inf"):
            raise ValueError(f"rope_scaling[{key!r}] must be a number > 0, got {value!r}")
    if scaling["rope_type"] == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        if high <= low:
            raise ValueError(
                f"rope_scaling['high_freq_factor'] must be > low_freq_factor, got {high} and {low}"
            )
