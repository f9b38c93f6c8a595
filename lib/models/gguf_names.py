"""Names and order of a GGUF file's tensors, by architecture, and Hugging Face's for the same. Introduced in chapter 1."""

from __future__ import annotations

_GLOBAL_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# general.architecture, and what `architectures` is in config.json. A Mistral is a "llama" there: llama.cpp reads no
# window from its file.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "qwen2moe": "Qwen2MoeForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
}
# `model_type` in config.json where it is another name.
MODEL_TYPES = {"gemma3": "gemma3_text", "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PRE_NORMS = ("attn_norm", "ffn_norm")
# Whose rows of q and k are stored pair by pair; the others keep Hugging Face's order.
_INTERLEAVED = ("llama", "smollm3", "mixtral")
_EXPERTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
_SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_MIXTRAL = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def hf_name(name: str, model_type: str) -> str:
    """Hugging Face's name of a tensor. Raises ValueError for one that the model_type does not have.

    A tensor of experts is one of `split_experts`, with the number of its expert.
    """
    layer_names = _names_of_layer(model_type)
    stem, _, kind = name.rpartition(".")
    if stem in _GLOBAL_NAMES:
        target = _GLOBAL_NAMES[stem]
    else:
        _, layer, part, expert, *more = stem.split(".") + [""] * 4
        inner = layer_names.get(part)
        if inner is not None and part in _EXPERTS and expert:
            inner = inner.format(expert=expert)
        target = f"model.layers.{layer}.{inner}"
    if target.endswith(".None") or kind not in ("weight", "bias"):
        raise ValueError(f"the tensor {name} is none of architecture {model_type!r}")
    return f"{target}.{kind}"


def _names_of_layer(model_type: str) -> dict[str, str]:
    """Hugging Face's name of each part of a layer, by the file's."""
    names = dict(_LAYER_NAMES)
    if model_type in ("qwen3", "qwen3_moe", "olmo2", "gemma3_text"):
        names |= _QK_NORMS
    if model_type in ("olmo2", "gemma2", "gemma3_text"):
        names |= _POST_NORMS
        names["ffn_norm"] = "pre_feedforward_layernorm"
    if model_type == "olmo2":
        for norm in _PRE_NORMS:
            del names[norm]
    if model_type == "mixtral":
        names["ffn_gate_inp"] = "block_sparse_moe.gate"
        inner = "block_sparse_moe.experts.{expert}."
        names |= {part: inner + _MIXTRAL[product] for part, product in _EXPERTS.items()}
    if model_type in ("qwen2_moe", "qwen3_moe"):
        names["ffn_gate_inp"] = "mlp.gate"
        names |= {part: f"mlp.experts.{{expert}}.{name}" for part, name in _EXPERTS.items()}
    if model_type == "qwen2_moe":
        names |= _SHARED_EXPERT
    return names


def interleaved_heads(target: str, model_type: str) -> str | None:
    """The key of config.json with the number of heads of a tensor that is stored pair by pair; None for the others."""
    if model_type not in _INTERLEAVED:
        return None
    if ".q_proj." in target:
        return "num_attention_heads"
    return "num_key_value_heads" if ".k_proj." in target else None
