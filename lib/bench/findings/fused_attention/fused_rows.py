"""One layer's attention at the largest batch, and its ratios, for the sentences of chapter 7.

Introduced in chapter 7.
"""

from collections.abc import Sequence
from typing import Any

from lib.bench.findings.values import Measured, cell, value
from lib.bench.findings.vocabulary import Finding, versus_prediction

BATCH, CONTEXT, HOT = "attention_by_batch", "attention_by_context", "hot_and_cold"
KINDS = {"contiguous": "the contiguous read", "gather": "the gather", "fused": "the fused kernel"}
TRANSFERS = {"contiguous": 1, "gather": 3, "fused": 1}  # times that each key and value moves


def positive(measured: Measured) -> float | None:
    """The middle of a measured value, where it is above zero."""
    found = value(measured).middle
    return found if found is not None and found > 0 else None


def over(a: Measured, b: Measured) -> float | None:
    """a over b by their middles; None where one is missing or not above zero."""
    x, y = positive(a), positive(b)
    return x / y if x and y else None


def largest(run: Any, column: str) -> Measured:
    """The value at the largest batch."""
    return cell(run[BATCH], column, -1)


def measured(run: Any, kind: str) -> float | None:
    """Time over the contiguous read's at the largest batch."""
    return over(largest(run, kind), largest(run, "contiguous"))


def judged(run: Any, kind: str, predicted: float | None) -> Finding:
    """The verdict on a predicted ratio to the contiguous read."""
    return versus_prediction(predicted, measured(run, kind), "×")


def versus_scaled(factor: float | None, base: Measured, got: Measured) -> Finding:
    """The verdict on "`got` is `factor` times `base`", by all repeats of both."""
    samples = base if isinstance(base, list) else [base]
    known = [factor * s for s in samples if s is not None and factor is not None]
    return versus_prediction(known or None, got)


def enumerated(parts: Sequence[str]) -> str:
    """ "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
