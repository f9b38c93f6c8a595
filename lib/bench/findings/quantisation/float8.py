"""The sentences of chapter 11 about float8, from errors and a divergence that the chapter computes.

Every function takes a run (a `Shown`, or a `Run` from disk). Series "float8" has the rows "int8" and
"float8" in the column "format"; "error" and "error_with_outlier" are shares, the root mean square of
the differences over that of the weights. Introduced in chapter 11.
"""

import math
from typing import Any

from lib.bench.findings.predictions import Prediction
from lib.bench.findings.values import cell, percent, times, value
from lib.bench.findings.vocabulary import missing

# Rounding to the nearest multiple of s has the mean square error s^2 / 12. With 3 bits of mantissa
# s = 2^e / 8 for weights between 2^e and 2^(e + 1), whose mean square is 7/3 * 4^e if they are
# spread evenly.
PREDICTED = math.sqrt(1 / (64 * 12) / (7 / 3))


def _errors(run: Any, column: str) -> dict[str, float]:
    series = run["float8"]
    names = list(series["format"]) if series is not None and "format" in series else []
    found = {name: value(cell(series, column, i)).middle for i, name in enumerate(names)}
    known = {name: x for name, x in found.items() if x is not None and x > 0}
    return known if {"int8", "float8"} <= known.keys() else {}


def error(run: Any) -> dict[str, str]:
    """The error of one matrix in both formats, and how much an outlier in each row changes it."""
    plain, outlier = _errors(run, "error"), _errors(run, "error_with_outlier")
    if not plain or not outlier:
        return {"float8_error_finding": missing("the error of float8").sentence}
    growth = {name: outlier[name] / plain[name] for name in ("int8", "float8")}
    return {
        "float8_error_finding": f"The matrix has an error of {100 * plain['int8']:.1f} % in int8 and "
        f"of {100 * plain['float8']:.1f} % in float8. With one outlier in each row the error of the "
        f"other weights is {times(growth['int8'])} as large in int8 and {times(growth['float8'])} as "
        "large in float8."
    }


def quality(run: Any) -> dict[str, str]:
    """KL divergence with weights and activations in float8, and the share of equal greedy tokens."""
    series = run["float8_quality"]
    divergence, same = (
        value(cell(series, name, 0)).middle for name in ("kl_divergence", "same_greedy")
    )
    if divergence is None or same is None:
        return {"float8_quality_finding": missing("the quality with float8").sentence}
    return {
        "float8_quality_finding": "With weights and activations in float8 the mean KL divergence is "
        f"{divergence:.2g} nats, with {percent(same)} equal greedy tokens."
    }


def predictions(run: Any) -> list[Prediction]:
    """The predicted errors, in per cent; none where the run has no such measurement."""
    plain, outlier = _errors(run, "error"), _errors(run, "error_with_outlier")
    if not plain or not outlier:
        return []
    why = "Small weights are more frequent than large ones, also between two powers of two."
    return [
        Prediction("error of float8", 100 * PREDICTED, 100 * plain["float8"], why, "%"),
        Prediction(
            "error of float8 beside outliers", 100 * PREDICTED, 100 * outlier["float8"], why, "%"
        ),
        Prediction(
            "error of int8 beside outliers, over its error without them", 20.0,
            outlier["int8"] / plain["int8"], "", "×",
        ),
    ]  # fmt: skip


def render(run: Any) -> dict[str, str]:
    """Every sentence about float8, by the name under which the chapter glues it."""
    return error(run) | quality(run)
