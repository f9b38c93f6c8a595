"""A decode step beside a busy program, against the same step alone.

Each function takes a run; most return sentences of chapter 8.

Introduced in chapter 8.
"""

from typing import Any

from lib.bench.findings.curves import growth
from lib.bench.findings.values import cell, positive, times
from lib.bench.findings.vocabulary import compare, missing


def busy(run: Any) -> dict[str, str]:
    """A decode step beside a busy program, for three ways of OpenMP's threads to wait."""
    series = run["busy_machine"]
    if series is None or len(series["setting"]) != 3:
        return {"busy_finding": missing("the step beside a busy program").sentence}
    quiet, beside = (
        [positive(cell(series, name, i)) for i in range(3)] for name in ("quiet", "busy")
    )
    if None in quiet or None in beside:
        return {"busy_finding": missing("the step beside a busy program").sentence}
    bounded = series["setting"][1]
    slow, limited, passive = (b / q for b, q in zip(beside, quiet))
    said = (
        f"Beside the busy program the default's step took {times(slow)} as long as alone, with {bounded} "
        f"{times(limited)}, and with threads that sleep at once {times(passive)}."
    )
    if slow < 1.5 * limited:
        said += " So this run does not show the slowdown."
    names = (bounded, "sleeping at once")
    cost = [
        compare(cell(series, "quiet", i), cell(series, "quiet", 0), name, "the default")
        for i, name in zip((1, 2), names)
    ]
    said += f" Alone, {cost[0]}; {cost[1]}."
    return {"busy_finding": said}


def busy_ratio(run: Any, row: int) -> float | None:
    """Time of the step beside the busy program over its time alone."""
    series = run["busy_machine"]
    return growth(cell(series, "quiet", row), cell(series, "busy", row))
