"""The supported model families: which keys of a config.json each reads, and which must have their neutral value.

A key that changes what the model computes is either read or, where the engine implements one value only, checked
against that value. Keys that are listed nowhere are ignored, as transformers ignores them: it computes from the keys of
its own config classes, and tests/models/test_families.py compares these with the table. Introduced in chapter 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_READ_BY_ALL = {"model_type", "architectures", "vocab_size", "tie_word_embeddings"}
_READ_BY_ALL |= {"bos_token_id", "eos_token_id", "quantization_config"}
_GPT2 = {"n_embd", "n_head", "n_layer", "n_inner", "n_positions", "layer_norm_epsilon"}
_LLAMA = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
_LLAMA |= {"num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps"}
_LLAMA |= {"rope_parameters", "rope_scaling", "rope_theta", "original_max_position_embeddings"}
_LLAMA |= {"partial_rotary_factor"}
_WINDOW = {"use_sliding_window", "sliding_window", "layer_types"}
_GEMMA2 = {"sliding_window", "layer_types", "query_pre_attn_scalar", "final_logit_softcapping"}
_EXPERTS = {"num_experts", "num_local_experts", "num_experts_per_tok"}
_QWEN_MOE = {"num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"}
_QWEN_MOE |= {"decoder_sparse_step", "mlp_only_layers"}

# Checked in every family that does not read them. Most belong to models that publish checkpoints under Llama's names
# and compute something else: Granite's multipliers, Gemma's soft caps, Cohere's scale, the experts of a mixture.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "per_layer_config": (None,),
    "hidden_act": ("silu",),
    "pretraining_tp": (1,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "sliding_window": (None,),
    "layer_types": (None,),
    "no_rope_layers": (None,),
    "use_bidirectional_attention": (None, False),
    "is_causal": (True,),
    "attention_chunk_size": (None,),
    "rope_interleaved": (False,),
    "use_qk_norm": (None, False),
    "clip_qkv": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "query_pre_attn_scalar": (None,),
    "attention_multiplier": (None,),
    "embedding_multiplier": (None, 1),
    "residual_multiplier": (None, 1),
    "logits_scaling": (None, 1),
    "logit_scale": (None, 1),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
}

# What a forward pass does not depend on: training, outputs that are not asked for, and heads other than the language
# model's. An embedding's padding row is read like any other.
NO_EFFECT = frozenset(
    {
        "transformers_version",
        "dtype",
        "torch_dtype",
        "use_cache",
        "return_dict",
        "output_hidden_states",
        "initializer_range",
        "attention_dropout",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "id2label",
        "label2id",
        "problem_type",
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
        "pad_token_id",
        "output_router_logits",
        "router_aux_loss_coef",
        "router_jitter_noise",
    }
)


@dataclass(frozen=True)
class Family:
    """How the config.json of one model_type is read.

    architectures: the values that `architectures` may name. A renamed checkpoint of another family
    has the same keys and other arithmetic. read: keys beside `_READ_BY_ALL`. neutral: allowed
    values of further keys; they replace those of `NEUTRAL`. defaults: what a missing key means,
    where that is not Llama's default.
    """

    architectures: tuple[str, ...]
    read: frozenset[str]
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def effect(self, key: str) -> str | None:
        """What becomes of a key: "read", "neutral" or "none"; None if it is not classified."""
        if key in self.read or key in _READ_BY_ALL:
            return "read"
        if key in self.neutral or key in NEUTRAL:
            return "neutral"
        return "none" if key in NO_EFFECT else None

    def check(self, raw: Mapping[str, Any]) -> None:
        """Raise ValueError, naming the key, for a value that the engine does not implement."""
        named = raw.get("architectures") or []
        if not isinstance(named, list) or not all(name in self.architectures for name in named):
            raise ValueError(
                f"architectures must be one of {list(self.architectures)} for model_type "
                f"{raw['model_type']!r}, got {named!r}"
            )
        for key, allowed in {**NEUTRAL, **self.neutral}.items():
            if key not in self.read and key in raw and raw[key] not in allowed:
                raise ValueError(f"{key} must be one of {list(allowed)}, got {raw[key]!r}")


# Gemma's first files say "gelu" and mean its tanh form, as transformers reads them.
_TANH_GELU = ("gelu_pytorch_tanh", "gelu")


def _causal_lm(name: str, *others: str) -> tuple[str, ...]:
    return (f"{name}ForCausalLM", f"{name}Model", *others)


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        ("GPT2LMHeadModel", "GPT2Model"),
        frozenset(_GPT2),
        {
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            # A numerical choice of the reference implementation; the function is the same.
            "reorder_and_upcast_attn": (False, True),
        },
    ),
    "llama": Family(
        _causal_lm("Llama", "LLaMAForCausalLM"),
        frozenset(_LLAMA | {"attention_bias", "mlp_bias"}),
    ),
    "mistral": Family(
        _causal_lm("Mistral"),
        frozenset(_LLAMA | {"sliding_window"}),
        defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    "qwen2": Family(
        _causal_lm("Qwen2"),
        frozenset(_LLAMA | _WINDOW | {"max_window_layers"}),
        defaults={"num_key_value_heads": 32, "sliding_window": 4096},
    ),
    "qwen3": Family(
        _causal_lm("Qwen3"),
        frozenset(_LLAMA | _WINDOW | {"max_window_layers", "attention_bias"}),
        defaults={"num_key_value_heads": 32, "sliding_window": 4096, "head_dim": 128},
    ),
    "smollm3": Family(
        _causal_lm("SmolLM3"),
        frozenset(_LLAMA | _WINDOW | {"no_rope_layers", "no_rope_layer_interval"})
        | {"attention_bias", "mlp_bias"},
        defaults={"num_key_value_heads": 4, "rope_theta": 2e6, "tie_word_embeddings": True},
    ),
    "olmo2": Family(
        _causal_lm("Olmo2"),
        frozenset(_LLAMA | {"attention_bias"}),
        defaults={"rms_norm_eps": 1e-5},
    ),
    "gemma": Family(
        _causal_lm("Gemma"),
        frozenset(_LLAMA | {"attention_bias"}),
        {"hidden_act": _TANH_GELU},
        {"num_key_value_heads": 16, "head_dim": 256, "tie_word_embeddings": True},
    ),
    "gemma2": Family(
        _causal_lm("Gemma2"),
        frozenset(_LLAMA | _GEMMA2 | {"attention_bias", "attn_logit_softcapping"}),
        {"hidden_act": _TANH_GELU, "hidden_activation": ("gelu_pytorch_tanh",)},
        {"num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True}
        | {"sliding_window": 4096, "query_pre_attn_scalar": 256}
        | {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
    ),
    "gemma3_text": Family(
        _causal_lm("Gemma3", "Gemma3TextModel"),
        frozenset(_LLAMA | _GEMMA2 | {"attention_bias"})
        | {"rope_local_base_freq", "sliding_window_pattern"},
        {"hidden_act": _TANH_GELU, "hidden_activation": ("gelu_pytorch_tanh",)},
        {"num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True}
        | {"sliding_window": 4096, "query_pre_attn_scalar": 256, "sliding_window_pattern": 6}
        | {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
    ),
    "mixtral": Family(
        _causal_lm("Mixtral"),
        frozenset(_LLAMA | _EXPERTS | {"sliding_window"}),
        defaults={"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6}
        | {"num_experts_per_tok": 2},
    ),
    "qwen2_moe": Family(
        _causal_lm("Qwen2Moe"),
        frozenset(_LLAMA | _WINDOW | _QWEN_MOE)
        | {"max_window_layers", "qkv_bias", "shared_expert_intermediate_size"},
        defaults={"num_key_value_heads": 16, "sliding_window": 4096, "qkv_bias": True}
        | {"num_experts_per_tok": 4, "moe_intermediate_size": 1408}
        | {"shared_expert_intermediate_size": 5632, "decoder_sparse_step": 1},
    ),
    "qwen3_moe": Family(
        _causal_lm("Qwen3Moe"),
        frozenset(_LLAMA | _EXPERTS | _QWEN_MOE)
        | {"use_sliding_window", "sliding_window", "attention_bias"},
        defaults={"num_key_value_heads": 4, "sliding_window": 4096}
        | {"num_experts_per_tok": 8, "moe_intermediate_size": 768}
        | {"decoder_sparse_step": 1},
    ),
}
