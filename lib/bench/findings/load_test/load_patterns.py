"""Patterns of arrival at one rate: which is the easiest.

Each function takes a run; most return sentences of chapter 6.

Introduced in chapter 6.
"""

from typing import Any

from lib.bench.findings.curves import ordering
from lib.bench.findings.load_test.load_rows import cells
from lib.bench.findings.values import positive, times
from lib.bench.findings.vocabulary import ABOUT, Finding, compare, missing

KINDS = ("steady", "poisson", "gamma", "burst")
CALLED = {
    "steady": "steady arrivals",
    "poisson": "random arrivals",
    "gamma": "clusters",
    "burst": "all at once",
}


def pattern_order(run: Any) -> tuple[list[str], Finding]:
    """The patterns by their 95th percentile of TTFT, shortest first, and the same in words."""
    series = run["patterns"]
    found = {k: cells(series, "ttft_p95", pattern=k) for k in KINDS}
    known = {k: m for k, m in found.items() if positive(m)}
    if len(known) < len(KINDS):
        return [], missing("the comparison of four patterns of arrival")
    order = sorted(known, key=lambda k: positive(known[k]))
    return order, ordering({CALLED[k]: known[k] for k in KINDS})


def easiest(run: Any) -> Finding:
    """The easiest pattern by name; its kind is "steady" unless another one has a clearly shorter p95.

    "cannot tell" where the median of another one is shorter and the repeats of the two overlap.
    """
    order, found = pattern_order(run)
    if not order:
        return found
    steady, best = (
        cells(run["patterns"], "ttft_p95", pattern=kind) for kind in ("steady", order[0])
    )
    apart = compare(steady, best, CALLED["steady"], CALLED[order[0]])
    if apart.ratio <= 1 + ABOUT:
        return Finding(CALLED["steady"], "steady")
    if apart.kind == "cannot tell":
        return Finding(f"{CALLED[order[0]]} at the median, with repeats that overlap", apart.kind)
    return Finding(CALLED[order[0]], order[0])


def patterns(run: Any) -> dict[str, str]:
    """Which pattern of arrival is the easiest."""
    order, found = pattern_order(run)
    if not order:
        return {"patterns_finding": found.sentence}
    said = f"By the 95th percentile of the TTFT: {found}."
    series = run["patterns"]
    p95 = {k: positive(cells(series, "ttft_p95", pattern=k)) for k in KINDS}
    if found.kind == "about":
        return {
            "patterns_finding": f"{said} At this rate the pattern makes no difference that the run can show."
        }
    first = easiest(run)
    if first.kind == "steady":
        hardest = times(p95[order[-1]] / p95["steady"])
        return {
            "patterns_finding": f"{said} No pattern is easier than the steady one: a benchmark at a steady rate measures "
            f"the easiest case, and here the hardest takes {hardest} as long."
        }
    if first.kind == "cannot tell":
        return {
            "patterns_finding": f"{said} Whether the steady pattern is the easiest, this run cannot tell: its repeats "
            f"and those of {CALLED[order[0]]} overlap."
        }
    return {
        "patterns_finding": f"{said} The steady pattern is not the easiest here, so the expectation failed in this run."
    }
