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
}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PRE_NORMS = ("attn_norm", "ffn_norm")
# Whose rows of q and k are stored pair by pair; the others keep Hugging Face's order.
_INTERLEAVED = ("llama", "smollm3")


def hf_name(name: str, architecture: str) -> str:
    """Hugging Face's name of a tensor. Raises ValueError for one that the architecture does not have."""
    layer_names = dict(_LAYER_NAMES)
    if architecture in ("qwen3", "olmo2"):
        layer_names |= _QK_NORMS
    if architecture == "olmo2":
        layer_names |= _POST_NORMS
        for norm in _PRE_NORMS:
            del layer_names[norm]
    stem, _, kind = name.rpartition(".")
    if stem in _GLOBAL_NAMES:
        target = _GLOBAL_NAMES[stem]
    else:
        _, layer, part = (stem.split(".") + ["", ""])[:3]
        target = f"model.layers.{layer}.{layer_names.get(part)}"
    if target.endswith(".None") or kind not in ("weight", "bias"):
        raise ValueError(f"the tensor {name} is none of architecture {architecture!r}")
    return f"{target}.{kind}"


def interleaved_heads(target: str, architecture: str) -> str | None:
    """The key of config.json with the number of heads of a tensor that is stored pair by pair; None for the others."""
    if architecture not in _INTERLEAVED:
        return None
    if ".q_proj." in target:
        return "num_attention_heads"
    return "num_key_value_heads" if ".k_proj." in target else None
