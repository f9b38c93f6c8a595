"""Chapter 4's readings of the gather: two caches, turn by turn, and what their bytes predict.

Introduced in chapter 4.
"""

from operator import sub, truediv

from lib.bench.findings.values import Measured, Value, cell, number, of_both, value
from lib.bench.records.series import Series

BY_BATCH, BY_CONTEXT = "decode_by_batch", "decode_by_context"


def middle(series: Series | None, name: str, row: int) -> float | None:
    found = value(cell(series, name, row)).middle
    return found if found and found > 0 else None


def ratio(series: Series | None, above: str, below: str, row: int) -> Value | None:
    """One time over another, of the medians, with the range of the turns; None where one is not above zero."""
    a, b = cell(series, above, row), cell(series, below, row)
    ends = [v.low for v in (value(a), value(b)) if v.known]
    return of_both(a, b, truediv) if len(ends) == 2 and min(ends) > 0 else None


def extra(series: Series | None, row: int) -> tuple[float | None, Measured]:
    """(predicted, measured) seconds that the gather adds to a step: 2 · M_KV / BW, and the difference of the medians.

    The range is that of the turns.
    """
    low, high = (middle(series, name, row) for name in ("bound_contiguous", "bound_paged"))
    predicted = high - low if low and high else None
    added = of_both(cell(series, "paged", row), cell(series, "contiguous", row), sub)
    return predicted, added if added.known else None


def overhead(series: Series | None, row: int) -> tuple[float | None, Measured]:
    """(predicted, measured) part of a contiguous step that the gather adds, as fractions: 0.53, and as `ratio`."""
    low, high = (middle(series, name, row) for name in ("bound_contiguous", "bound_paged"))
    predicted = high / low - 1 if low and high else None
    found = ratio(series, "paged", "contiguous", row)
    if found is None:
        return predicted, None
    return predicted, Value(found.middle - 1, found.low - 1, found.high - 1, found.count)


def place(series: Series | None, row: int, axis: str) -> str:
    found = value(cell(series, axis, row)).middle
    return axis if found is None else f"{axis} {number(found)}"


# For the figure.


def curves(series: Series) -> dict[str, list[float]]:
    """Times over those of the contiguous cache, for the figure: measured, by the two bounds, and by the extra bytes."""
    slots, low, high = (series[n] for n in ("contiguous", "bound_contiguous", "bound_paged"))
    return {
        "gathered": [b / a for a, b in zip(slots, series["paged"])],
        "attention alone": [
            b / a for a, b in zip(series["contiguous_attention"], series["paged_attention"])
        ],
        "ratio of the bounds": [b / a for a, b in zip(low, high)],
        "measured slots + extra bytes": [1 + (b - a) / t for t, a, b in zip(slots, low, high)],
        "transformers": [b / a for a, b in zip(slots, series["transformers"])],
    }


def turns(series: Series) -> list[list[float]]:
    """The ratio of the gathered step in each turn, for the bars of the figure; an empty list where none were kept."""
    pairs = zip(series.samples.get("contiguous", []), series.samples.get("paged", []))
    return [[b / a for a, b in zip(slots, blocks)] for slots, blocks in pairs]
