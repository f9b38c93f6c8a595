"""One decode step of a batch by counts: its bytes, its operations, and the batch at which one overtakes the other.

Introduced in chapter 3.
"""

import math
from typing import Any

from lib.bench.measure import counts
from lib.bench.measure.roofline import Roofline


def stored(dtype: str) -> str:
    """TF32 is a way to multiply: its numbers lie in memory as float32."""
    return "float32" if dtype == "tf32" else dtype


def step_times(
    config: Any, roofline: Roofline, batch: int, length: int, dtype: str
) -> tuple[float, float]:
    """Least seconds of a decode step of `batch` sequences of `length` tokens.

    Two numbers: for the bytes, and for the operations.
    """
    lengths = [length] * batch
    return (
        counts.step_bytes(config, stored(dtype), lengths) / roofline.bandwidth,
        counts.step_flops(config, lengths) / roofline.rate(dtype),
    )


def turning_point(
    config: Any,
    roofline: Roofline,
    length: int,
    dtype: str,
) -> int | None:
    """The smallest batch whose step is bound by arithmetic, or None."""
    weights = counts.streamed_bytes(config, stored(dtype)) / roofline.bandwidth
    # Seconds that each sequence adds: for its cache, and for its operations.
    per_token = counts.kv_bytes_per_token(config, stored(dtype))
    cache = length * per_token / roofline.bandwidth
    arithmetic = counts.decode_flops(config, length) / roofline.rate(dtype)
    if arithmetic <= cache:
        return None
    return math.ceil(weights / (arithmetic - cache))
