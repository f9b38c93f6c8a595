"""A table of what differs between the model families, made from transformers' config classes. Introduced in chapter 14."""

from __future__ import annotations

from typing import Any

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
    "rope_layers": "layers without RoPE",
    "layer_windows": "sliding window, tokens",
    "rope_theta": "RoPE's theta",
    "norm_eps": "epsilon of the norms",
    "tie_word_embeddings": "head tied to the embedding",
}
# The keys of config.json that set each, where they are not named like the field.
_KEYS = {
    "qk_norm": (),
    "post_norm": (),
    "output_bias": ("attention_bias",),
    "rope_layers": ("no_rope_layers",),
    "layer_windows": ("sliding_window",),
    "norm_eps": ("rms_norm_eps",),
}


def default_config(family: str) -> ModelConfig:
    """The ModelConfig of transformers' default config of a family that resembles Llama."""
    from transformers import CONFIG_MAPPING

    raw: dict[str, Any] = CONFIG_MAPPING[family]().to_dict()
    FAMILIES[family].check({**raw, "model_type": family})
    return ModelConfig(architecture=family, **llama_fields({**raw, "model_type": family}))


def family_table() -> list[dict[str, str]]:
    """One row for each difference: its default in each family, with "*" where a config.json can set it."""
    families = [family for family in FAMILIES if family != "gpt2"]
    configs = {family: default_config(family) for family in families}
    rows = []
    for name, title in DIFFERENCES.items():
        row = {"": title}
        for family in families:
            keys = _KEYS.get(name, (name,))
            can_set = any(FAMILIES[family].effect(key) == "read" for key in keys)
            row[family] = _shown(name, configs[family]) + ("*" if can_set else "")
        rows.append(row)
    return rows


def _shown(name: str, config: ModelConfig) -> str:
    value = getattr(config, name)
    if name == "rope_layers":
        without = sum(not rotates for rotates in value)
        return f"{without} of {config.num_layers}" if without else "none"
    if name == "layer_windows":
        windows = sorted({window for window in value if window is not None})
        return ", ".join(map(str, windows)) if windows else "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return f"per {value}" if name == "qk_norm" else f"{value:g}"
