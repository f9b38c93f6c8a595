"""A tiny Llama as a GGUF file with blocks: sizes that blocks of 32 divide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from tests.helpers import hf_llama

HEADS, KV_HEADS, HEAD_DIM = 6, 2, 16
SIZES = dict(
    vocab_size=61,
    hidden_size=96,
    intermediate_size=160,
    num_attention_heads=HEADS,
    num_key_value_heads=KV_HEADS,
)
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GLOBALS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def permuted(tensor: np.ndarray, heads: int) -> np.ndarray:
    """convert_hf_to_gguf.py, LlamaModel.permute: interleaves the halves of each head of q and k."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in GLOBALS:
        return f"{GLOBALS[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.{kind}"


def write(
    path: Path, kinds: dict[str, str], default: str = "Q4_1", drop: str = "", **config
) -> Path:
    """A random tiny Llama. `kinds`: {part of a tensor's name in the file: type}; norms and biases stay F32."""
    hf = hf_llama(5, **{**SIZES, **config})
    c, writer = hf.config, GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_vocab_size, c.vocab_size),
        (writer.add_embedding_length, c.hidden_size),
        (writer.add_block_count, c.num_hidden_layers),
        (writer.add_head_count, HEADS),
        (writer.add_head_count_kv, KV_HEADS),
        (writer.add_feed_forward_length, c.intermediate_size),
        (writer.add_context_length, 512),
        (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_rope_dimension_count, HEAD_DIM),
        (writer.add_bos_token_id, 1),
        (writer.add_eos_token_id, 2),
    ):
        add(value)
    for name, tensor in hf.state_dict().items():
        target, data = gguf_name(name), tensor.detach().contiguous().float().numpy()
        if (name == "lm_head.weight" and c.tie_word_embeddings) or (drop and drop in target):
            continue
        if "q_proj" in name or "k_proj" in name:
            data = permuted(data, HEADS if "q_proj" in name else KV_HEADS)
        kind = next((k for part, k in kinds.items() if part in target), default)
        if data.ndim == 1 and not any(part in target for part in kinds):
            kind = "F32"
        if kind in ("Q4_K", "Q6_K"):  # the gguf package reads these and does not write them
            kind_id = GGMLQuantizationType[kind]
            raw = np.zeros((data.shape[0], data.shape[1] // 256 * (144 if kind == "Q4_K" else 210)))
            writer.add_tensor(target, raw.astype(np.uint8), raw_dtype=kind_id)
        elif kind == "F32":
            writer.add_tensor(target, data)
        elif kind == "F16":
            writer.add_tensor(target, data.astype(np.float16))
        else:
            kind_id = GGMLQuantizationType[kind]
            writer.add_tensor(target, quantize(data, kind_id), raw_dtype=kind_id)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
