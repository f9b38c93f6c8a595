"""A step at each batch of chapter 3's sweep: its time, ratios and gains, out of the rates.

Introduced in chapter 3.
"""

import math
from collections.abc import Sequence

from lib.bench.findings.curves import growth
from lib.bench.findings.values import Measured, column, ends, value
from lib.bench.records.series import Series

SWEEP = "batch_sweep_float32"


def batches(series: Series | None) -> list[int]:
    return [] if series is None else list(series["batch"])


def step_ms(series: Series | None, name: str = "tok_s") -> list[Measured]:
    """Milliseconds of a step at each batch, from a column of rates, with the spread of its repeats."""
    found: list[Measured] = []
    for batch, rates in zip(batches(series), column(series, name)):
        samples = rates if isinstance(rates, list) else [rates]
        found.append([1e3 * batch / rate for rate in samples if rate and rate > 0] or None)
    return found


def at_row(measured: Sequence[Measured], row: int) -> Measured:
    return measured[row] if -len(measured) <= row < len(measured) else None


def ratio(measured: Sequence[Measured], row: int = -1) -> float | None:
    """The value at `row` over the first one; None where one of them is missing."""
    return growth(at_row(measured, 0), at_row(measured, row))


def gain(series: Series | None, name: str) -> float | None:
    """How many times a column grows from the smallest batch to the largest."""
    return growth(*ends(series, name))


def over_bound(series: Series | None, row: int) -> float | None:
    """Time of a step over its bound."""
    return growth(at_row(step_ms(series, "bound_tok_s"), row), at_row(step_ms(series), row))


def doubling(series: Series | None, measured: Sequence[Measured]) -> float | None:
    """The batch at which a step takes twice as long as the first, read off between two measured ones; None: not reached."""
    found = [(b, v.middle) for b, m in zip(batches(series), measured) if (v := value(m)).known]
    for (a, low), (b, high) in zip(found, found[1:]):
        if high >= 2 * found[0][1] > low > 0:
            part = math.log(2 * found[0][1] / low) / math.log(high / low)
            return a * (b / a) ** part
    return None
