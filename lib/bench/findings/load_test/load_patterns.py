"""Patterns of arrival at one rate: which is the easiest.

Each function takes a run; most return sentences of chapter 6.

Introduced in chapter 6.
"""

from typing import Any

from lib.bench.findings.curves import ordering
from lib.bench.findings.load_test.load_rows import cells
from lib.bench.findings.values import positive, times
from lib.bench.findings.vocabulary import Finding, missing

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


def steady_is_easiest(run: Any) -> bool:
    """Whether no pattern has a 95th percentile that is more than 10 % shorter than that of the steady one."""
    order, _ = pattern_order(run)
    p95 = [positive(cells(run["patterns"], "ttft_p95", pattern=k)) for k in ("steady", *order[:1])]
    return bool(order) and p95[0] <= 1.1 * p95[1]


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
    if steady_is_easiest(run):
        hardest = times(p95[order[-1]] / p95["steady"])
        return {
            "patterns_finding": f"{said} No pattern is easier than the steady one: a benchmark at a steady rate measures "
            f"the easiest case, and here the hardest takes {hardest} as long."
        }
    return {
        "patterns_finding": f"{said} The steady pattern is not the easiest here, so the expectation failed in this run."
    }
