"""Small readings of chapter 5's series, which its findings share.

Introduced in chapter 5.
"""

from typing import Any

from lib.bench.findings.values import Measured, positive, quantity
from lib.bench.findings.vocabulary import Finding, missing, versus_prediction
from lib.bench.records.series import Series


def param(series: Series | None, name: str) -> Any:
    """A parameter of a series; None where the series or the parameter is absent."""
    return None if series is None else series.params.get(name)


def scaled(measured: Measured, factor: float | None) -> float | None:
    """The middle times a factor; None where one is missing or the middle is not above zero."""
    middle = positive(measured)
    return None if middle is None or factor is None else middle * factor


def at_most(subject: str, limit: Measured, measured: Measured, what: str) -> Finding:
    """Whether a time stays within a limit. kind: "within", "above", "cannot tell" or "missing"."""
    most, got = positive(limit), positive(measured)
    if most is None or got is None:
        return missing(f"{subject} beside {what}")
    both = f"{quantity(got, 's')} against {quantity(most, 's')}"
    if versus_prediction(limit, measured).kind == "cannot tell":
        text = f"this run cannot tell whether {subject} took less than {what} ({both}, within the spread of the repeats)"
        return Finding(text, "cannot tell", got / most)
    if got <= most:
        return Finding(f"{subject} took less than {what} ({both})", "within", got / most, -1)
    text = f"{subject} took longer than {what} ({both}), so the prediction failed"
    return Finding(text, "above", got / most, 1)


def waves(requests: float | None, seats: float | None) -> int | None:
    """How many batches, one after the other, so many equal requests make; None where a number is missing or zero."""
    if not requests or not seats or requests < 0 or seats < 0:
        return None
    return -int(-requests // seats)
