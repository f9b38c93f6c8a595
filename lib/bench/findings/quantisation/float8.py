"""The sentences of chapter 11 about float8, from errors and a divergence that the chapter computes.

Every function takes a run (a `Shown`, or a `Run` from disk). Series "float8" has the rows "int8"
and "float8" in the column "format"; "error" and "error_with_outlier" are shares, the root mean
square of the differences over that of the weights. Introduced in chapter 11.
"""

import math
from typing import Any

from lib.bench.findings.predictions import Prediction, with_causes
from lib.bench.findings.values import cell, cell_of, percent, positive, scientific, times, value
from lib.bench.findings.vocabulary import missing, size_of

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
    less = min(plain, key=plain.get)
    if size_of(plain["int8"] / plain["float8"]) == "about":
        which = "about the same error in both formats"
    else:
        which = f"the smaller error in {less}"
    said = [_growth(outlier[name] / plain[name], name) for name in ("int8", "float8")]
    return {
        "float8_error_finding": f"The matrix has an error of {100 * plain['int8']:.1f} % in int8 "
        f"and of {100 * plain['float8']:.1f} % in float8: without outliers it has {which}. With "
        f"one outlier in each row the error of the other weights is {' and '.join(said)}."
    }


def _growth(ratio: float, name: str) -> str:
    if size_of(ratio) == "about":
        return f"about as large as without it in {name}"
    return f"{times(ratio)} as large in {name}"


def quality(run: Any) -> dict[str, str]:
    """KL divergence with weights and activations in float8, beside that of int8 × int8."""
    series = run["float8_quality"]
    divergence, same = (
        value(cell(series, name, 0)).middle for name in ("kl_divergence", "same_greedy")
    )
    if divergence is None or same is None:
        return {"float8_quality_finding": missing("the quality with float8").sentence}
    text = (
        "With weights and activations in float8 the mean KL divergence is "
        f"{scientific(divergence)} nats, with {percent(same)} equal greedy tokens."
    )
    other = positive(cell_of(run["quality"], "int8 × int8", "kl_divergence"))
    if other is not None and divergence > 0:
        ratio = divergence / other
        said = "about" if size_of(ratio) == "about" else f"{times(ratio)}"
        text += (
            f" That is {said} the divergence of int8 × int8 in the table above ({scientific(other)} nats), "
            "which rounds activations in blocks of 32 with a scale each."
        )
    return {"float8_quality_finding": text}


def predictions(run: Any) -> list[Prediction]:
    """The predicted errors, in per cent; none where the run has no such measurement."""
    plain, outlier = _errors(run, "error"), _errors(run, "error_with_outlier")
    if not plain or not outlier:
        return []
    why = "Small weights are more frequent than large ones, also between two powers of two."
    return with_causes(
        [
            *(
                Prediction(
                    claim, 100 * PREDICTED, 100 * found, why if found > PREDICTED else "", "%"
                )
                for claim, found in (
                    ("error of float8", plain["float8"]),
                    ("error of float8 beside outliers", outlier["float8"]),
                )
            ),
            Prediction(
                "error of int8 beside outliers, over its error without them", 20.0,
                outlier["int8"] / plain["int8"], "", "×",
            ),
        ]
    )  # fmt: skip


def render(run: Any) -> dict[str, str]:
    """Every sentence about float8, by the name under which the chapter glues it."""
    return error(run) | quality(run)
