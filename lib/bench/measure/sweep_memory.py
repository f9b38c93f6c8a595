"""Memory that a point of a chapter's sweep takes, counted, so that a sweep can be cut to what its device has.

Introduced in chapter 3.
"""

from typing import Any

from lib.bench.measure import counts

# Of a process on a GPU besides weights and cache: the CUDA context, libraries' workspaces, a step's activations.
PROCESS_BYTES = 0.6e9


def batch_sweep_bytes(config: Any, dtype: str, batch: int, tokens: int) -> float:
    """This engine and transformers' `generate` on `batch` sequences of up to `tokens` tokens, both in memory.

    Each has the weights and all keys and values; transformers has a step's logits in float32 three times.
    """
    kv = batch * tokens * counts.kv_bytes_per_token(config, dtype)
    logits = 3 * batch * config.vocab_size * 4
    return 2 * (counts.weight_bytes(config, dtype) + kv) + logits


def servers_bytes(config: Any, dtype: str, seqs: int, tokens: int, servers: int) -> float:
    """`servers` processes, each with the weights and a cache for `seqs` sequences of `tokens` tokens."""
    kv = seqs * tokens * counts.kv_bytes_per_token(config, dtype)
    return servers * (PROCESS_BYTES + counts.weight_bytes(config, dtype) + kv)


def decode_step_bytes(config: Any, batch: int, context: int, half: bool = False) -> float:
    """A contiguous and a paged cache in float32, and one layer's gathered copy of the latter.

    half: with two further caches and a copy of two bytes per number.
    """
    kv = batch * context * counts.kv_bytes_per_token(config, "float32")
    return (1.5 if half else 1.0) * kv * (2 + 1 / config.num_layers)
