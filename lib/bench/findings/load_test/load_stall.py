"""A stall of the server, by a clock that starts when requests are due and one when they are sent.

Each function takes a run; most return sentences of chapter 6.

Introduced in chapter 6.
"""

from typing import Any

from lib.bench.findings.load_test.load_rows import labels
from lib.bench.findings.values import cell, column, number, quantity, value
from lib.bench.findings.vocabulary import missing


def stall(run: Any) -> dict[str, str]:
    """How many requests a stall of the server slowed down, by each clock."""
    series = run["stall_count"]
    if series is None:
        return {
            "stall_finding": f"{_stall_percentiles(run)} {missing('the number of slow requests').sentence}"
        }
    slow = dict(zip(labels(series, "clock"), column(series, "slow")))
    n, long = series.params.get("requests"), series.params.get("slow")
    due, sent = (value(slow.get(clock)).middle for clock in ("since due", "since sent"))
    if due is None or sent is None or not n or not long:
        return {"stall_finding": missing("the number of slow requests").sentence}
    said = (
        f"Of {number(n)} requests, {number(sent)} took longer than {quantity(long, 's')} if the clock starts when they "
        f"were sent, and {number(due)} if it starts when they were due"
    )
    if due > 1.25 * max(sent, 0):
        return {
            "stall_finding": f"{said}. The first clock misses the others: they waited in the "
            "generator. Users experience the times of the second clock."
        }
    return {"stall_finding": f"{said}: this run does not show a difference between the two clocks."}


def _stall_percentiles(run: Any) -> str:
    series = run["stall"]
    rows = dict(zip(labels(series, "percentile"), range(99)))
    due, sent = (
        value(cell(series, name, rows["p50"])).middle if "p50" in rows else None
        for name in ("since_due", "since_sent")
    )
    if due is None or sent is None:
        return missing("the time of an answer during the stall").sentence
    return (
        f"Half of the requests took longer than {quantity(sent, 's')} if the clock starts when they were sent, and longer "
        f"than {quantity(due, 's')} if it starts when they were due."
    )
