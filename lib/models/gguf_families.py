"""What the GGUF files of Gemma and of mixtures of experts say in other ways than Llama's. Introduced in chapter 1.

Where a file leaves out what llama.cpp's own code sets for an architecture, the values here are llama.cpp's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# llama.cpp's largest Gemma 2 and 3, by their number of layers: it divides the width by the heads there, and takes the
# head size in the others.
_LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}


@dataclass(frozen=True)
class FilePart:
    """One matrix of a tensor with three dimensions, with the attributes of a `gguf.ReaderTensor`."""

    name: str
    tensor_type: Any
    shape: tuple[int, ...]  # innermost dimension first, as in the file
    data: Any


def family_keys(
    architecture: str, own: dict[str, Any], tensors: dict[str, Any], head_dim: int
) -> dict[str, Any]:
    """Keys of config.json on top of Llama's. own: the file's keys without the architecture's name.

    Raises KeyError for a missing key, ValueError for a value that llama.cpp does not have there.
    """
    if architecture.startswith("gemma"):
        return _gemma(architecture, own, head_dim)
    if not own.get("expert_count"):
        return {}
    keys = {
        "num_local_experts" if architecture == "llama" else "num_experts": own["expert_count"],
        "num_experts_per_tok": own["expert_used_count"],
    }
    normalises = architecture != "qwen2moe"
    if (given := own.get("expert_weights_norm", normalises)) != normalises:
        raise ValueError(f"{architecture}.expert_weights_norm must be {normalises}, got {given!r}")
    if architecture == "llama":
        return keys
    keys |= {
        "moe_intermediate_size": own["expert_feed_forward_length"],
        "norm_topk_prob": normalises,
    }
    if architecture == "qwen2moe":
        keys["shared_expert_intermediate_size"] = own["expert_shared_feed_forward_length"]
        keys["qkv_bias"] = "blk.0.attn_q.bias" in tensors
    return keys


def _gemma(architecture: str, own: dict[str, Any], head_dim: int) -> dict[str, Any]:
    keys: dict[str, Any] = {"hidden_act": "gelu_pytorch_tanh", "head_dim": head_dim}
    if architecture == "gemma":
        return keys
    largest = own["block_count"] == _LARGEST_GEMMA[architecture]
    scalar = own["embedding_length"] // own["attention.head_count"] if largest else head_dim
    keys |= {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": scalar}
    if architecture == "gemma2":
        return keys | {
            "sliding_window": own.get("attention.sliding_window", 4096),
            "attn_logit_softcapping": own.get("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": own.get("final_logit_softcapping", 30.0),
        }
    return keys | {
        "sliding_window": own["attention.sliding_window"],
        "sliding_window_pattern": own.get("attention.sliding_window_pattern", 6),
        "rope_local_base_freq": own.get("rope.freq_base_swa", 1e4),
        "final_logit_softcapping": own.get("final_logit_softcapping"),
    }


def split_experts(tensors: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The tensors by name, those of all experts as one of each: blk.3.ffn_up_exps.weight as blk.3.ffn_up_exps.0.weight, …

    The gate of a shared expert, a vector in the file, becomes a matrix of one row.
    """
    for name, item in tensors.items():
        stem, _, kind = name.rpartition(".")
        shape = tuple(int(n) for n in item.shape)
        if stem.endswith("_exps") and len(shape) == 3:
            for expert, data in enumerate(item.data):
                part = f"{stem}.{expert}.{kind}"
                yield part, FilePart(part, item.tensor_type, shape[:2], data)
        elif stem.endswith("ffn_gate_inp_shexp") and len(shape) == 1:
            yield name, FilePart(name, item.tensor_type, (*shape, 1), item.data[None])
        else:
            yield name, item


def without_offset(values: Tensor, target: str, model_type: str) -> Tensor:
    """llama.cpp adds 1 to the weights of Gemma's norms when it writes a file; here they are without it."""
    return values - 1 if model_type.startswith("gemma") and "norm." in target else values
