"""The sentence about the experts that a step reads. Introduced in chapter 14."""

from __future__ import annotations

from lib.bench.findings.values import percent
from lib.bench.records.series import Series


def spread(series: Series) -> str:
    """The experts that a step of the largest batch reads, and how far counts are from a random choice.

    series: columns `batch`, `counted` and `expected`, with `params["experts"]`. Counts can lie above
    the expectation by chance only.
    """
    worst = min(
        counted / expected for counted, expected in zip(series["counted"], series["expected"])
    )
    most, batch = series["counted"][-1], series["batch"][-1]
    total = series.params["experts"]
    text = f"A step of {batch} requests reads {most:.1f} of {total} experts per layer. "
    if worst >= 0.9:
        return text + "The counts are at least 90 % of those of a random choice."
    return text + (
        "The tokens of a batch prefer the same experts: at one batch size, a step reads only "
        f"{percent(worst)} of the experts that a random choice would reach."
    )
