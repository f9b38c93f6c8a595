"""Least time of a decode step's matrix products by the bytes of their weights and by their operations.

Introduced in chapter 11.
"""

from __future__ import annotations

from lib.bench.measure.roofline import Roofline


def product_times(
    roofline: Roofline, weight_bytes: int, weights: int, rows: int, faster: float = 1.0
) -> tuple[float, float]:
    """Least seconds of `rows` rows times `weights` weights: for the bytes, and for the operations.

    The weights are read once and take `weight_bytes`. A row costs two operations per weight, at the
    float32 rate of the machine times `faster`: how many more of them an instruction does. The
    larger of the two times is the bound. Raises ValueError for rows or a factor that is not positive.
    """
    if rows < 1 or faster <= 0:
        raise ValueError(f"rows={rows}, faster={faster}: need rows >= 1 and faster > 0")
    operations = 2 * rows * weights
    return weight_bytes / roofline.bandwidth, operations / (roofline.rate("float32") * faster)


def turning_rows(roofline: Roofline, weight_bytes: int, weights: int, faster: float = 1.0) -> float:
    """The number of rows at which the two times are equal: below it bytes bind, above it operations."""
    bytes_time, row_time = product_times(roofline, weight_bytes, weights, 1, faster)
    return bytes_time / row_time
