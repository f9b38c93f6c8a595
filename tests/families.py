"""Random checkpoints of every family with unusual shapes, as transformers makes them."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

from tests.helpers import POSITIONS, VOCAB, spread

NAMES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "smollm3": "SmolLM3",
    "olmo2": "Olmo2",
    "gemma": "Gemma",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3Text",
    "mixtral": "Mixtral",
    "qwen2_moe": "Qwen2Moe",
    "qwen3_moe": "Qwen3Moe",
}
# transformers names Gemma 3's model without the "Text" of its config.
MODELS = {**NAMES, "gemma3_text": "Gemma3"}
WINDOW = 7  # shorter than most of the tests' sequences, no multiple of a block
BASE = dict(
    vocab_size=VOCAB,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=POSITIONS,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
)
# What each family can have that Llama cannot, in one or more variants.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("mistral", {"sliding_window": WINDOW}),
    "mistral-no-window": ("mistral", {"sliding_window": None}),
    "mistral-wide-heads": ("mistral", {"sliding_window": 16, "head_dim": 20}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 6}),
    "qwen2-some-windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen2-windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0},
    ),
    "qwen3": ("qwen3", {"head_dim": 10}),
    "qwen3-biases": ("qwen3", {"head_dim": 8, "attention_bias": True, "num_key_value_heads": 1}),
    "qwen3-layer-types": (
        "qwen3",
        {
            "head_dim": 8,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 2}),
    "smollm3-list": ("smollm3", {"no_rope_layers": [0, 1, 0, 1], "tie_word_embeddings": False}),
    "smollm3-windows": (
        "smollm3",
        {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": WINDOW},
    ),
    "smollm3-biases": ("smollm3", {"attention_bias": True, "mlp_bias": True}),
    "olmo2": ("olmo2", {}),
    "olmo2-biases": ("olmo2", {"attention_bias": True, "num_key_value_heads": 3}),
    "olmo2-tied": ("olmo2", {"tie_word_embeddings": True, "rms_norm_eps": 1e-2}),
    "gemma": ("gemma", {"head_dim": 10}),
    "gemma-biases": (
        "gemma",
        {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": False},
    ),
    # Caps as small as most scores and logits, so that they bend them.
    "gemma2": (
        "gemma2",
        {"head_dim": 10, "sliding_window": WINDOW, "query_pre_attn_scalar": 17}
        | {
            "tie_word_embeddings": False,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 8.0,
        },
    ),
    "gemma2-no-caps": (
        "gemma2",
        {"head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}
        | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 10, "sliding_window": WINDOW, "query_pre_attn_scalar": 17}
        | {"tie_word_embeddings": False}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "gemma3-all-windows": (
        "gemma3_text",
        {"head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}
        | {"final_logit_softcapping": 8.0},
    ),
    "mixtral": ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "mixtral-windows": (
        "mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": WINDOW},
    ),
    "qwen2_moe": (
        "qwen2_moe",
        {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
        | {"shared_expert_intermediate_size": 36},
    ),
    "qwen2_moe-some-windows": (
        "qwen2_moe",
        {"num_experts": 3, "num_experts_per_tok": 1, "moe_intermediate_size": 20}
        | {"shared_expert_intermediate_size": 36, "norm_topk_prob": True}
        | {"use_sliding_window": True, "sliding_window": WINDOW, "mlp_only_layers": [1]},
    ),
    "qwen3_moe": (
        "qwen3_moe",
        {"head_dim": 10, "num_experts": 7, "num_experts_per_tok": 3}
        | {"moe_intermediate_size": 20, "decoder_sparse_step": 2},
    ),
    "qwen3_moe-windows": (
        "qwen3_moe",
        {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}
        | {"moe_intermediate_size": 20, "use_sliding_window": True, "sliding_window": WINDOW},
    ),
}


def config_class(family: str) -> type:
    """transformers' config class of a model_type."""
    return getattr(transformers, f"{NAMES.get(family, family.upper())}Config")


def hf_family(family: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A random model of the family, as transformers builds it."""
    model = getattr(transformers, f"{MODELS[family]}ForCausalLM")
    config = config_class(family)(**{**BASE, **changes})
    # A loop over experts: the other implementations need sizes that are multiples of 4.
    config._experts_implementation = "eager"
    hf = spread(model(config), seed)
    if family.startswith("gemma"):  # which multiplies it by this, so that attention would not count
        with torch.no_grad():
            hf.model.embed_tokens.weight /= config.hidden_size**0.5
    return hf


def hf_variant(name: str, seed: int = 0, **changes: Any) -> nn.Module:
    """The model of an entry of VARIANTS."""
    family, own = VARIANTS[name]
    return hf_family(family, seed, **{**own, **changes})
