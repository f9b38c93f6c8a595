"""Keys of config.json that only mixtures of experts have. Introduced in chapter 1.

Jiang et al. 2024 (Mixtral), Yang et al. 2024 (Qwen2-MoE: a shared expert), Yang et al. 2025 (Qwen3-MoE).
"""

from __future__ import annotations

from typing import Any

from lib.models.config_values import count, flag

# The number of experts where config.json does not say.
_DEFAULT_EXPERTS = {"mixtral": 8, "qwen2_moe": 60, "qwen3_moe": 128}
MOE_FAMILIES = tuple(_DEFAULT_EXPERTS)


def moe_fields(raw: dict[str, Any], layers: int) -> dict[str, Any]:
    """ModelConfig's arguments that differ from Llama's. `raw` has the family's defaults for missing keys.

    Raises ValueError, naming the key, for a bad value.
    """
    family = raw["model_type"]
    experts, chosen = _num_experts(raw), count(raw, "num_experts_per_tok")
    if chosen > experts:
        raise ValueError(
            f"num_experts_per_tok must be <= the number of experts, {experts}, got {chosen}"
        )
    fields: dict[str, Any] = {"num_experts": experts, "num_experts_per_tok": chosen}
    if family == "mixtral":
        return fields | {"moe_intermediate_size": raw["intermediate_size"], "norm_topk_prob": True}
    if family == "qwen2_moe":
        fields["shared_expert_size"] = count(raw, "shared_expert_intermediate_size")
    return fields | {
        "moe_intermediate_size": count(raw, "moe_intermediate_size"),
        "norm_topk_prob": flag(raw, "norm_topk_prob", False),
        "moe_layers": _moe_layers(raw, layers),
    }


def _num_experts(raw: dict[str, Any]) -> int:
    """transformers 5 takes either key for Mixtral and Qwen3-MoE, and writes the second."""
    keys = ("num_experts", "num_local_experts")
    given = {key: count(raw, key) for key in keys if raw.get(key) is not None}
    if len(set(given.values())) > 1:
        raise ValueError(f"num_experts and num_local_experts must be equal, got {given}")
    return next(iter(given.values())) if given else _DEFAULT_EXPERTS[raw["model_type"]]


def _moe_layers(raw: dict[str, Any], layers: int) -> tuple[bool, ...]:
    """Whether each layer's MLP is a mixture: every `decoder_sparse_step`-th, but for `mlp_only_layers`."""
    step, dense = count(raw, "decoder_sparse_step"), raw.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(isinstance(layer, int) for layer in dense):
        raise ValueError(f"mlp_only_layers must be a list of layers, got {dense!r}")
    return tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(layers))
