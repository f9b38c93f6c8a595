"""Keys of config.json that only Gemma's families have. Introduced in chapter 1.

Mesnard et al. 2024 (Gemma), Riviere et al. 2024 (Gemma 2: soft caps, norms before and after, alternating windows),
Kamath et al. 2025 (Gemma 3: norms of q and k, layers with a window rotate by frequencies of their own).
"""

from __future__ import annotations

from typing import Any

from lib.models.config_values import positive
from lib.models.rope_config import read_rope

_KINDS = ("full_attention", "sliding_attention")
_NO_COMMON_ROPE = (("rope_theta", None), ("rope_type", "default"))


def gemma_fields(raw: dict[str, Any]) -> dict[str, Any]:
    """ModelConfig's arguments that differ from Llama's. `raw` has the family's defaults for missing keys.

    Raises ValueError, naming the key, for a bad value.
    """
    fields: dict[str, Any] = {
        "activation": "gelu_tanh",
        "norm_offset": True,
        "embedding_scale": raw["hidden_size"] ** 0.5,
    }
    if raw["model_type"] == "gemma":
        return fields
    scalar = positive(raw, "query_pre_attn_scalar")
    if scalar is None:
        raise ValueError("query_pre_attn_scalar must be a number > 0, got None")
    fields |= {
        "sandwich_norm": True,
        "attention_scale": scalar**-0.5,
        "final_softcap": positive(raw, "final_logit_softcapping"),
    }
    if raw["model_type"] == "gemma2":
        return fields | {"attention_softcap": positive(raw, "attn_logit_softcapping")}
    return fields | {"qk_norm": "head", **_two_ropes(raw)}


def _two_ropes(raw: dict[str, Any]) -> dict[str, Any]:
    """RoPE of the layers that see all tokens, and the theta of those with a window.

    transformers 5 writes one object per kind of layer; older files have `rope_theta`,
    `rope_scaling` and `rope_local_base_freq`.
    """
    given = raw.get("rope_parameters") or {}
    if isinstance(given, dict):
        # transformers 5.15 also writes what one RoPE for all layers would be.
        given = {k: v for k, v in given.items() if (k, v) not in _NO_COMMON_ROPE}
    if not isinstance(given, dict) or not set(given) <= set(_KINDS):
        raise ValueError(
            f"rope_parameters must be an object with keys of {list(_KINDS)}, got {given!r}"
        )
    every, local = (given.get(kind) or {} for kind in _KINDS)
    plain = isinstance(local, dict) and set(local) <= {"rope_type", "rope_theta"}
    if not plain or local.get("rope_type", "default") != "default":
        raise ValueError(
            "rope_parameters['sliding_attention'] must be an object of rope_theta and rope_type "
            f"'default', got {local!r}"
        )
    if raw.get("rope_scaling"):
        every = {**every, **raw["rope_scaling"]}
    theta, scaling = read_rope({**raw, "rope_parameters": every, "rope_scaling": None})
    local_theta = local.get("rope_theta", raw["rope_local_base_freq"])
    return {"rope_theta": theta, "rope_scaling": scaling, "local_rope_theta": local_theta}
