"""A table of what differs between the model families, made from transformers' config classes. Introduced in chapter 14."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lib.bench.powers import power_of_ten
from lib.models.config import ModelConfig
from lib.models.config_keys import llama_fields
from lib.models.families import FAMILIES

# Fields of ModelConfig that are differences of function; the others are sizes.
DIFFERENCES = {
    "attention_bias": "biases of q, k and v",
    "output_bias": "bias of the attention's output",
    "mlp_bias": "biases of the MLP",
    "qk_norm": "norms of q and k",
    "post_norm": "norms after attention and MLP",
    "sandwich_norm": "norms before and after them",
    "norm_offset": "norms multiply by 1 + weight",
    "activation": "activation of the MLP",
    "embedding_scale": "embedding times",
    "attention_scale": "attention scores times",
    "attention_softcap": "cap of attention scores",
    "final_softcap": "cap of logits",
    "rope_layers": "layers without RoPE",
    "layer_windows": "sliding window, tokens",
    "rope_theta": "RoPE's theta",
    "local_rope_theta": "RoPE's theta in layers with a window",
    "norm_eps": "epsilon of the norms",
    "tie_word_embeddings": "head tied to the embedding",
    "num_experts": "experts per layer",
    "num_experts_per_tok": "experts per token",
    "norm_topk_prob": "shares of the chosen experts sum to 1",
    "shared_expert_size": "features of a shared expert",
}
# The keys of config.json that set each, where they are not named like the field.
_KEYS = {
    "qk_norm": (),
    "post_norm": (),
    "output_bias": ("attention_bias",),
    "rope_layers": ("no_rope_layers",),
    "layer_windows": ("sliding_window",),
    "norm_eps": ("rms_norm_eps",),
    "attention_bias": ("attention_bias", "qkv_bias"),
    "sandwich_norm": (),
    "norm_offset": (),
    "activation": (),
    "embedding_scale": (),
    "attention_scale": ("query_pre_attn_scalar",),
    "attention_softcap": ("attn_logit_softcapping",),
    "final_softcap": ("final_logit_softcapping",),
    "local_rope_theta": ("rope_local_base_freq",),
    "num_experts": ("num_experts", "num_local_experts"),
    "shared_expert_size": ("shared_expert_intermediate_size",),
}
# The table's parts, as wide as a page: each begins with Llama, to compare with.
DENSE = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2")
GEMMA = ("llama", "gemma", "gemma2", "gemma3_text")
MIXTURES = ("llama", "mixtral", "qwen2_moe", "qwen3_moe")


def default_config(family: str) -> ModelConfig:
    """The ModelConfig of transformers' default config of a family that resembles Llama."""
    from transformers import CONFIG_MAPPING

    raw: dict[str, Any] = CONFIG_MAPPING[family]().to_dict()
    FAMILIES[family].check({**raw, "model_type": family})
    return ModelConfig(architecture=family, **llama_fields({**raw, "model_type": family}))


def family_table(
    families: Sequence[str] = (*DENSE, *GEMMA[1:], *MIXTURES[1:]),
) -> list[dict[str, str]]:
    """One row for each difference: its default in each family, with "*" where a config.json can set it.

    Differences that none of `families` has are left out.
    """
    configs = {family: default_config(family) for family in families}
    rows = []
    for name, title in DIFFERENCES.items():
        row = {"": title}
        for family in families:
            keys = _KEYS.get(name, (name,))
            can_set = any(FAMILIES[family].effect(key) == "read" for key in keys)
            row[family] = _shown(name, configs[family]) + ("*" if can_set else "")
        if len({row[family] for family in families}) > 1:
            rows.append(row)
    return rows


def _shown(name: str, config: ModelConfig) -> str:
    value = getattr(config, name)
    if name == "rope_layers":
        without = sum(not rotates for rotates in value)
        return f"{without} of {config.num_layers}" if without else "none"
    if name == "layer_windows":
        windows = sorted({window for window in value if window is not None})
        return ", ".join(f"{window:,}" for window in windows) if windows else "none"
    if name in ("attention_scale", "embedding_scale"):  # both are roots of whole numbers
        scale = config.head_dim**-0.5 if value is None else value
        root = round(scale**2 if scale > 1 else scale**-2)
        return "1" if scale == 1 else f"√{root}" if scale > 1 else f"1/√{root}"
    if name in ("num_experts", "num_experts_per_tok", "shared_expert_size") and value == 0:
        return "none"
    if isinstance(value, str) and name == "activation":
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return f"per {value}" if name == "qk_norm" else _number(value)


def _number(value: float) -> str:
    """Thousands with commas and small powers of ten as such: "1,000,000", "10⁻⁶", "0.5"."""
    if 0 < value < 1e-3:
        factor, exponent = f"{value:e}".split("e")
        power = power_of_ten(int(exponent))
        return power if float(factor) == 1 else f"{float(factor):g}·{power}"
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"
