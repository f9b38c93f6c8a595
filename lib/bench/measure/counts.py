"""Counted, not timed: parameters, FLOPs and bytes of a GPT-2 or Llama model from its configuration alone.

Conventions: a matmul [m, k] x [k, n] costs 2·m·k·n FLOPs (one multiply, one add); norms, activations, softmax and
embedding lookups are left out, as is usual (Kaplan et al., 2020). Attention counts only the pairs that the causal
mask keeps. `config` is any object with the fields of `lib.models.config.ModelConfig`.

Introduced in chapter 1.
"""

from collections.abc import Sequence
from typing import Any

import torch

from lib.bench.measure.roofline import Roofline


def dtype_bytes(dtype: torch.dtype | str) -> int:
    """Bytes of one element: `torch.bfloat16` or "bfloat16" gives 2."""
    dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(dtype, torch.dtype):
        raise ValueError("dtype: must be a torch.dtype or the name of one, such as 'float32'")
    return torch.empty(0, dtype=dtype).element_size()


def layer_matmul_weights(config: Any, layer: int = 0) -> int:
    """Elements of the weight matrices that a token meets in a layer: q, k, v, output, and the MLP's.

    Those are two in GPT-2, three in a gated MLP. In a mixture of experts: the router and the chosen
    experts' (`lib.models.moe`).
    """
    d, q, kv = (
        config.hidden_size,
        config.num_heads * config.head_dim,
        config.num_kv_heads * config.head_dim,
    )
    attention = d * (q + 2 * kv) + q * d
    if _is_moe(config, layer):
        chosen = config.num_experts_per_tok * expert_weights(config)
        shared = 3 * d * config.shared_expert_size + (d if config.shared_expert_size else 0)
        return attention + d * config.num_experts + chosen + shared
    matrices = 2 if config.architecture == "gpt2" else 3
    return attention + matrices * d * config.intermediate_size


def expert_weights(config: Any) -> int:
    """Elements of the three matrices of one expert of a mixture."""
    return 3 * config.hidden_size * config.moe_intermediate_size


def idle_weights(config: Any) -> int:
    """Elements of the experts that a token does not meet, over all layers; 0 without a mixture."""
    layers = sum(_is_moe(config, layer) for layer in range(config.num_layers))
    if not layers:
        return 0
    return layers * (config.num_experts - config.num_experts_per_tok) * expert_weights(config)


def _is_moe(config: Any, layer: int) -> bool:
    return getattr(config, "num_experts", 0) > 0 and config.is_moe(layer)


def _matmul_weights(config: Any) -> int:
    """`layer_matmul_weights` of all layers."""
    if getattr(config, "num_experts", 0) == 0:  # all are alike; the models of steps ask very often
        return config.num_layers * layer_matmul_weights(config)
    return sum(layer_matmul_weights(config, layer) for layer in range(config.num_layers))


def _layer_vectors(config: Any) -> int:
    """Elements of one layer's biases and norms."""
    d, f = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    if (
        config.architecture == "gpt2"
    ):  # two LayerNorms with weight and bias; every linear has a bias
        return 4 * d + (q + 2 * kv) + d + f + d
    attention = q + 2 * kv if config.attention_bias else 0
    attention += d if getattr(config, "output_bias", config.attention_bias) else 0
    norms = {None: 0, "head": 2 * config.head_dim, "projection": q + kv}
    attention += norms[getattr(config, "qk_norm", None)]
    around = 4 * d if getattr(config, "sandwich_norm", False) else 2 * d
    return around + attention + (2 * f + d if config.mlp_bias else 0)


def parameters(config: Any) -> int:
    """Exact number of parameters; a tied output head counts once."""
    d, vocabulary = config.hidden_size, config.vocab_size
    embeddings = vocabulary * d
    final_norm = d
    if config.architecture == "gpt2":
        embeddings += config.max_position_embeddings * d
        final_norm = 2 * d
    head = 0 if config.tie_word_embeddings else vocabulary * d
    return (
        embeddings
        + _matmul_weights(config)
        + idle_weights(config)
        + config.num_layers * _layer_vectors(config)
        + final_norm
        + head
    )


def weight_bytes(config: Any, dtype: torch.dtype | str) -> int:
    """Bytes of all parameters in memory."""
    return parameters(config) * dtype_bytes(dtype)


def streamed_bytes(config: Any, dtype: torch.dtype | str) -> int:
    """Weight bytes that one step must read whatever its batch: everything but the embedding tables.

    A lookup reads one row of a table, not the table; a tied table is read whole after all, as the output head.
    Of a mixture of experts, those of one token.
    """
    tables = (
        config.max_position_embeddings * config.hidden_size if config.architecture == "gpt2" else 0
    )
    if not config.tie_word_embeddings:
        tables += config.vocab_size * config.hidden_size
    return (parameters(config) - idle_weights(config) - tables) * dtype_bytes(dtype)


def kv_bytes_per_token(config: Any, dtype: torch.dtype | str) -> int:
    """Bytes of cache that one token takes: a key and a value for each layer and each key-value head."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype_bytes(dtype)


def attention_pairs(query_len: int, kv_len: int, causal: bool = True) -> int:
    """Query-key pairs of one head: the last `query_len` of `kv_len` positions, each seeing itself and the past."""
    if not 1 <= query_len <= kv_len:
        raise ValueError(f"query_len={query_len}, kv_len={kv_len}: need 1 <= query_len <= kv_len")
    all_pairs = query_len * kv_len
    return all_pairs - query_len * (query_len - 1) // 2 if causal else all_pairs


def flops(config: Any, query_len: int, kv_len: int, logits: int = 1, causal: bool = True) -> int:
    """FLOPs of one forward pass over `query_len` new tokens of one sequence that is then `kv_len` long.

    2·weights per token for the layers, 4·pairs·heads·head_dim for q·kᵀ and weights·v, 2·d·V for each of the `logits`
    positions. `causal=False` counts the full rectangle, as a kernel that masks afterwards computes it.
    """
    linear = 2 * query_len * _matmul_weights(config)
    attention = 4 * attention_pairs(query_len, kv_len, causal) * config.num_heads * config.head_dim
    return (
        linear + config.num_layers * attention + logits * 2 * config.hidden_size * config.vocab_size
    )


def prefill_flops(config: Any, prompt_len: int) -> int:
    """FLOPs of a prompt in one pass, logits of its last position only."""
    return flops(config, prompt_len, prompt_len)


def decode_flops(config: Any, kv_len: int) -> int:
    """FLOPs of one more token with a cache; `kv_len` includes that token."""
    return flops(config, 1, kv_len)


def generate_flops(config: Any, prompt_len: int, new_tokens: int, kv_cache: bool = True) -> int:
    """FLOPs of a whole generation. Without a cache, each token computes everything before it again.

    The last token is sampled, never fed back: lengths go from prompt_len to prompt_len + new_tokens - 1.
    """
    if new_tokens < 1:
        raise ValueError(f"new_tokens={new_tokens}: must be at least 1")
    lengths = range(prompt_len, prompt_len + new_tokens)
    if not kv_cache:
        return sum(prefill_flops(config, length) for length in lengths)
    return prefill_flops(config, prompt_len) + sum(
        decode_flops(config, length) for length in lengths[1:]
    )


def step_bytes(config: Any, dtype: torch.dtype | str, kv_lens: Sequence[int]) -> int:
    """Bytes that one decode step of a batch must read: the weights once, and every sequence's keys and values.

    Left out, being small: the new token's own row of cache, embedding rows, activations that stay in caches.
    """
    return streamed_bytes(config, dtype) + sum(kv_lens) * kv_bytes_per_token(config, dtype)


def step_flops(config: Any, kv_lens: Sequence[int]) -> int:
    """FLOPs of one decode step of a batch: one new token for each sequence."""
    return sum(decode_flops(config, kv_len) for kv_len in kv_lens)


def intensity(config: Any, dtype: torch.dtype | str, kv_lens: Sequence[int]) -> float:
    """FLOPs per byte of a decode step; below the machine's ridge, bandwidth bounds the step."""
    return step_flops(config, kv_lens) / step_bytes(config, dtype, kv_lens)


def mfu(
    flops: float, seconds: float, roofline: Roofline, dtype: torch.dtype | str = "float32"
) -> float:
    """Model FLOPs utilisation: the fraction of the measured matmul rate that useful FLOPs reached (Chowdhery, 2022)."""
    return flops / seconds / roofline.rate(dtype)


def mbu(bytes: float, seconds: float, roofline: Roofline) -> float:
    """Model bandwidth utilisation: the fraction of the measured bandwidth that the bytes one must move reached."""
    return bytes / seconds / roofline.bandwidth
