"""The sentence of chapter 3 about a padded batch: the time of its pass against its tokens.

Introduced in chapter 3.
"""

from typing import Any

from lib.bench.findings.batching.batching_rows import over
from lib.bench.findings.values import Measured, cell, times, times_between, value
from lib.bench.findings.vocabulary import missing, versus_prediction
from lib.bench.records.series import Series


def padding(run: Any) -> dict[str, str]:
    """The time of a padded pass against its tokens."""
    series = run["padding"]
    tokens, seconds = over(series, "tokens", 0, 1), padding_time(series)
    if tokens is None or not value(seconds).known:
        return {"padding_finding": missing("the time of the padded pass").sentence}
    found = versus_prediction(tokens, seconds, "×")
    verdict = found.verdict
    if found.kind == "cannot tell":
        verdict = (
            "the turns spread too widely for a verdict "
            f"(from {times_between(value(seconds).low, value(seconds).high)})"
        )
    return {
        "padding_finding": (
            f"Its forward pass took {times(value(seconds).middle)} as long as the flat one, for {times(tokens)} the "
            f"tokens: {verdict}."
        )
    }


def padding_time(series: Series | None) -> Measured:
    """Time of the padded pass over the flat one, with the spread of the turns."""
    padded, flat = cell(series, "seconds", 0), cell(series, "seconds", 1)
    middle = value(flat).middle
    if middle is None or middle <= 0 or not value(padded).known or value(padded).middle <= 0:
        return None
    samples = padded if isinstance(padded, list) else [padded]
    return [s / middle for s in samples]
