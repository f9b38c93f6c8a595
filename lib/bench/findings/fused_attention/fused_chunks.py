"""Chunks of many queries: from which size on they are handed to PyTorch, and whether that is the right one.

Introduced in chapter 7.
"""

from typing import Any

from lib.bench.findings.curves import crossing
from lib.bench.findings.run_notes import of_record
from lib.bench.findings.values import column, listed, number, positive
from lib.bench.findings.vocabulary import compare, missing

CHUNKS = "chunks"
_MOST_QUERIES = 8  # the hand-over of runs that did not record it


def chunks(run: Any) -> dict[str, str]:
    """Where the kernel becomes slower than a gather and PyTorch's attention, and whether the hand-over is there."""
    series = run[CHUNKS]
    sizes, kernel, gather = (column(series, name) for name in ("queries", "kernel", "gather"))
    if not any(map(positive, kernel)) or not any(map(positive, gather)):
        return {
            "crossover_finding": missing("the kernel with long chunks").sentence,
            "hand_over_finding": missing("the best limit").sentence,
        }
    found = crossing(sizes, kernel, gather, "the kernel's time", "the gather's", "{} queries")
    limit = series.params.get("most_queries", _MOST_QUERIES)
    early, late, unsure = [], [], []
    for n, a, b in zip(sizes, kernel, gather):
        faster = compare(a, b, "the kernel", "the gather")
        if faster.kind == "cannot tell" and (faster.ratio > 1) == (n <= limit):
            unsure.append(number(n))
        if faster.direction > 0 and n <= limit:
            late.append(number(n))
        if faster.direction < 0 and n > limit:
            early.append(number(n))
    if late and early:
        said = (
            f"The limit of {limit} queries is wrong in both directions: the kernel is slower at {_queries(late)} and "
            f"faster at {_queries(early)}."
        )
    elif late:
        said = f"The limit of {limit} queries is too high: the kernel is slower already at {_queries(late)}."
    elif early:
        said = f"The limit of {limit} queries is too low: the kernel is still faster at {_queries(early)}."
    elif unsure:
        said = (
            f"The limit of {limit} queries chooses the slower of the two, by the medians, at {_queries(unsure)}; this "
            "run cannot tell the two apart there, because their repeats overlap."
        )
    else:
        said = f"At no size that was measured does the limit of {limit} queries choose the slower of the two."
    return {"crossover_finding": of_record(run, found.sentence), "hand_over_finding": said}


def _queries(counts: list[str]) -> str:
    return f"{listed(counts)} {'query' if counts == ['1'] else 'queries'}"
