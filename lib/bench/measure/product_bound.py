"""Least time of a decode step's matrix products: for their bytes, and for their operations.

Introduced in chapter 11.
"""

from __future__ import annotations

from lib.bench.measure.roofline import Roofline


def product_times(
    roofline: Roofline, weight_bytes: int, weights: int, rows: int, faster: float = 1.0
) -> tuple[float, float]:
    """Least seconds to multiply `rows` rows with `weights` weights: (for bytes, for operations).

    The weights are read once and take `weight_bytes`. A row needs two operations per weight. Their
    rate is the machine's float32 rate times `faster`: the operations of this format per float32
    operation. The larger of the two times is the bound. Raises ValueError if `rows` is below 1 or
    `faster` is not above 0.
    """
    if rows < 1 or faster <= 0:
        raise ValueError(f"rows={rows}, faster={faster}: need rows >= 1 and faster > 0")
    operations = 2 * rows * weights
    return weight_bytes / roofline.bandwidth, operations / (roofline.rate("float32") * faster)


def turning_rows(roofline: Roofline, weight_bytes: int, weights: int, faster: float = 1.0) -> float:
    """Number of rows, not rounded, at which the two times of `product_times` are equal.

    With fewer rows the time of the bytes is the longer one, with more that of the operations.
    """
    bytes_time, row_time = product_times(roofline, weight_bytes, weights, 1, faster)
    return bytes_time / row_time
