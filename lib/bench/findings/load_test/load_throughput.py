"""Throughput by users: over its prediction, the gain of batching and of paging, and over HTTP.

Each function takes a run; most return sentences of chapter 6.

Introduced in chapter 6.
"""

from typing import Any

from lib.bench.findings.curves import trend
from lib.bench.findings.load_test.load_model import gain_at, ratio
from lib.bench.findings.load_test.load_rows import (
    COMPARED,
    CONTIGUOUS,
    NAMES,
    PAGED,
    SEQUENTIAL,
    by_users,
    counted,
    rate,
    users,
)
from lib.bench.findings.run_notes import of_record
from lib.bench.findings.values import cell, number, percent, positive, times
from lib.bench.findings.vocabulary import Finding, compare, missing

FLAT = "the throughput of the sequential server"


def fit(run: Any) -> list[tuple[float, str, float]]:
    """(measured over predicted, server, users) of every point that has both."""
    return [
        (got / want, name, level)
        for name in COMPARED
        for level, measured, predicted in zip(
            users(run), by_users(run, name), by_users(run, f"{name}, predicted")
        )
        if (got := positive(measured)) and (want := positive(predicted))
    ]


def throughput(run: Any) -> dict[str, str]:
    """The sentences under the figure of throughput by users."""
    points = fit(run)
    if points:
        low, high = min(points)[0], max(points)[0]
        worst = max(points, key=lambda p: max(p[0], 1 / p[0]))
        near = sum(abs(p[0] - 1) <= 0.1 for p in points)
        first = f"Measured over predicted lies between {low:.2f} and {high:.2f} over {len(points)} points"
        if near == len(points):
            first += ": as predicted, everywhere within 10 %."
        else:
            first += (
                f": {near} of them within 10 % of the prediction. The furthest is {NAMES[worst[1]]} with "
                f"{counted(worst[2], 'user')}, at {worst[0]:.2f} times the prediction."
            )
    else:
        first = missing("throughput over its prediction").sentence
    first = of_record(run, first) + _together(run)
    flat = flat_trend(run)
    verdict = {"flat": "as predicted", "cannot tell": "so the prediction is not judged"}
    said = f"With more users {FLAT} {flat}, {verdict.get(flat.kind, 'so the prediction failed')}."
    if flat.kind == "missing":
        said = missing(FLAT).sentence
    return {"fit_finding": first, "flat_finding": said, "gain_finding": _gain(run)}


def _together(run: Any) -> str:
    """Whether the lines of the two batching servers lie on each other in the figure; begins with a space."""
    pairs = zip(by_users(run, CONTIGUOUS), by_users(run, PAGED))
    ratios = [r for a, b in pairs if (r := ratio(a, b))]
    if not ratios or len(ratios) < len(users(run)):
        return ""
    apart = max(max(r, 1 / r) for r in ratios) - 1
    if apart > 0.1:
        return ""
    return f" The two batching servers differ by at most {percent(apart)}, so their lines lie on each other."


def flat_trend(run: Any) -> Finding:
    return trend(users(run), by_users(run, SEQUENTIAL), "tokens/s")


def factors(run: Any) -> tuple[float | None, float | None]:
    """(batching, paging): contiguous over sequential, and paged over contiguous."""
    row = gain_at(run)
    return (
        ratio(rate(run, CONTIGUOUS, row), rate(run, SEQUENTIAL, row)),
        ratio(rate(run, PAGED, row), rate(run, CONTIGUOUS, row)),
    )


def gain_cause(run: Any) -> Finding:
    """Which of the two changes the gain is due to. kind: "batching", "both", "paging", "none" or "missing"."""
    batching, paging = factors(run)
    if batching is None or paging is None:
        return missing("the gain by batching", "the gain by paging")
    more, faster = batching > 1.25, paging > 1.1
    if more and not faster:
        kept = "costs some of it" if paging < 1 / 1.1 else "changes little"
        return Finding(f"the gain comes from the scheduler, and paging {kept}", "batching")
    if more:
        text = (
            "both changes add to the gain, and the gain of paging is not one that the model knows"
        )
        return Finding(text, "both")
    if faster:
        return Finding("the gain comes from paging, and not from the scheduler", "paging")
    return Finding("neither change makes the server faster here", "none")


def _gain(run: Any) -> str:
    batching, paging = factors(run)
    row, levels = gain_at(run), users(run)
    if batching is None or paging is None:
        return missing("the gain over the sequential server").sentence
    whole = compare(rate(run, PAGED, row), rate(run, SEQUENTIAL, row), NAMES[PAGED], NAMES[SEQUENTIAL],
                    what="throughput", unit="tokens/s")  # fmt: skip
    return (
        f"With {number(levels[row])} users, {whole}. Batching alone gives {times(batching)} and paging "
        f"{times(paging)}: {gain_cause(run)}."
    )


def http(run: Any) -> dict[str, str]:
    """What HTTP costs."""
    series = run["http_over_offline"]
    offline, online = cell(series, "offline_s", 0), cell(series, "http_s", 0)
    found = compare(online, offline, "the batch over HTTP", "the same batch without a server")
    kept = ratio(offline, online)
    if kept is None:
        return {"http_finding": missing("the throughput over HTTP").sentence}
    said = f"Over HTTP the engine reaches {percent(kept)} of its throughput without a server"
    if found.kind == "cannot tell":
        return {"http_finding": f"{said}, but {found}."}
    if found.direction < 0:
        return {
            "http_finding": f"{said}: {found}. A server cannot make the engine faster, so "
            "something else differs between the two."
        }
    return {"http_finding": f"{said}: {found}."}
