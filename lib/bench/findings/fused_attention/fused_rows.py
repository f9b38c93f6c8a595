"""One layer's attention at the largest batch, and its ratios, for the sentences of chapter 7.

Introduced in chapter 7.
"""

from typing import Any

from lib.bench.findings.values import Measured, cell, over
from lib.bench.findings.vocabulary import Finding, ratio_range, versus_prediction

BATCH, CONTEXT, HOT = "attention_by_batch", "attention_by_context", "hot_and_cold"
KINDS = {"contiguous": "the contiguous read", "gather": "the gather", "fused": "the fused kernel"}
TRANSFERS = {"contiguous": 1, "gather": 3, "fused": 1}  # times that each key and value moves


def largest(run: Any, column: str) -> Measured:
    """The value at the largest batch."""
    return cell(run[BATCH], column, -1)


def measured(run: Any, kind: str) -> float | None:
    """Time over the contiguous read's at the largest batch."""
    return over(largest(run, kind), largest(run, "contiguous"))


def measured_range(run: Any, kind: str) -> Measured:
    """The same with the range of the repeats, as a verdict needs it."""
    return ratio_range(largest(run, kind), largest(run, "contiguous"))


def judged(run: Any, kind: str, predicted: float | None) -> Finding:
    """The verdict on a predicted ratio to the contiguous read."""
    return versus_prediction(predicted, measured_range(run, kind), "×")


def versus_scaled(factor: float | None, base: Measured, got: Measured) -> Finding:
    """The verdict on "`got` is `factor` times `base`", by all repeats of both."""
    return versus_prediction(factor, ratio_range(got, base), "×")
