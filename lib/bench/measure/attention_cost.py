"""Least time of a decode step's attention, and of the whole step, by how often each key and value moves.

Introduced in chapter 7.
"""

from typing import Any

from lib.bench.measure import counts
from lib.bench.measure.roofline import Roofline


def layer_bytes(config: Any, batch_size: int, context: int, dtype: str = "float32") -> int:
    """Bytes of one layer's keys and values: `batch_size` sequences of `context` tokens."""
    tokens = batch_size * context
    return tokens * counts.kv_bytes_per_token(config, dtype) // config.num_layers


def attention_time(
    config: Any,
    roofline: Roofline,
    batch_size: int,
    context: int,
    transfers: int = 1,
    dtype: str = "float32",
    arithmetic: str = "float32",
) -> float:
    """Least seconds of one layer's decode attention.

    transfers: how often its keys and values are moved. dtype: of keys and values.
    arithmetic: the dtype whose rate of matrix products counts.
    """
    flops = 4 * batch_size * context * config.num_heads * config.head_dim
    moved = transfers * layer_bytes(config, batch_size, context, dtype)
    return roofline.time(bytes=moved, flops=flops, dtype=arithmetic)


def step_time(
    config: Any,
    roofline: Roofline,
    batch_size: int,
    context: int,
    transfers: int = 1,
    dtype: str = "float32",
    arithmetic: str = "float32",
) -> float:
    """Least seconds of a whole decode step: everything but attention, then attention, layer by layer."""
    pairs = 4 * context * config.num_heads * config.head_dim
    rest = counts.decode_flops(config, context) - config.num_layers * pairs
    linear = roofline.time(
        bytes=counts.streamed_bytes(config, dtype), flops=batch_size * rest, dtype=arithmetic
    )
    layer = attention_time(config, roofline, batch_size, context, transfers, dtype, arithmetic)
    return linear + config.num_layers * layer
