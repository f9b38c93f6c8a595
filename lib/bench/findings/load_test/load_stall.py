"""A stall of the server, by a clock that starts when requests are due and one when they are sent.

Each function takes a run; most return sentences of chapter 6.

Introduced in chapter 6.
"""

from typing import Any

from lib.bench.findings.load_test.load_rows import labels
from lib.bench.findings.values import cell, column, number, positive, quantity, value
from lib.bench.findings.vocabulary import missing, versus_prediction

LOAD = 0.5  # offered rate over what the server can do with all places taken, by the model


def slow_requests(due: float, places: float, load: float = LOAD) -> float | None:
    """Requests that take longer than half of a stall, since due; None for a load of 1 or more.

    due: requests that are due during the stall. One that is due x seconds after its beginning takes
    S - x + load x + t, with S the stall and t the time in a place. That is more than S/2 for
    x < (S/2 + t) / (1 - load). Half of the places are taken when it begins.
    """
    if not 0 <= load < 1:
        return None
    return (due / 2 + load * places) / (1 - load) + places / 2


def expected_slow(run: Any) -> float | None:
    """Slow requests, since they were due, by the model; of old records what they hold."""
    series = run["stall_count"]
    if series is None:
        return None
    rate, stall_s, places = (series.params.get(n) for n in ("rate", "stall", "places"))
    if rate and stall_s and places:
        return slow_requests(rate * stall_s, places)
    return value(cell(series, "expected", 0)).middle


def place_seconds(run: Any) -> float | None:
    """Mean time in a place (s) of the requests that had waited, while the queue was emptied."""
    series = run["stall_requests"]
    if series is None or not series.params.get("stopped"):
        return None
    rows = zip(*(labels(series, name) for name in ("due", "since due", "since sent")))
    _, end = series.params["stopped"]
    least = 0.01 * series.params["stall"]
    found = [
        sent
        for at, due, sent in rows
        if None not in (at, due, sent) and due - sent > least and at + due > end and sent > 0
    ]
    return sum(found) / len(found) if found else None


def measured_load(run: Any) -> float | None:
    """The load while the queue was emptied: rate times time in a place, over the places."""
    seconds, series = place_seconds(run), run["stall_requests"]
    return seconds and series.params["rate"] * seconds / series.params["places"]


def slow_at_load(run: Any) -> float | None:
    """Slow requests by the same formula at the measured load."""
    load, series = measured_load(run), run["stall_requests"]
    if load is None:
        return None
    p = series.params
    return slow_requests(p["rate"] * p["stall"], p["places"], load)


def slow_cause(run: Any) -> str:
    """Why the count differs from the model's, where the measured load explains it."""
    slow = cell(run["stall_count"], "slow", 0)
    if versus_prediction(slow_at_load(run), slow).kind not in ("about", "little"):
        return ""
    return (
        f"the load was {number(round(measured_load(run), 2))} while the queue was emptied; at that "
        f"load the formula gives {number(round(slow_at_load(run)))} requests"
    )


def stall(run: Any) -> dict[str, str]:
    """How many requests a stall of the server slowed down, by each clock."""
    return {"stall_finding": _clocks(run), "load_finding": _load(run)}


def _load(run: Any) -> str:
    load, seconds = measured_load(run), place_seconds(run)
    if not load:
        return missing("the load while the queue was emptied").sentence
    verdict = versus_prediction(LOAD, load).verdict
    said = (
        f"While the queue was emptied, a request spent {quantity(seconds, 's')} in its place, which "
        f"is a load of {number(round(load, 2))} (predicted: {number(LOAD)}): {verdict}."
    )
    at_load, slow = slow_at_load(run), positive(cell(run["stall_count"], "slow", 0))
    if at_load is None or slow is None:
        return said
    judged = versus_prediction(at_load, slow).verdict
    return (
        f"{said} At this load the formula gives {number(round(at_load))} slow requests since due, "
        f"and {number(slow)} were counted: {judged}."
    )


def _clocks(run: Any) -> str:
    series = run["stall_count"]
    if series is None:
        return f"{_stall_percentiles(run)} {missing('the number of slow requests').sentence}"
    slow = dict(zip(labels(series, "clock"), column(series, "slow")))
    n, long = series.params.get("requests"), series.params.get("slow")
    due, sent = (value(slow.get(clock)).middle for clock in ("since due", "since sent"))
    if due is None or sent is None or not n or not long:
        return missing("the number of slow requests").sentence
    said = (
        f"Of {number(n)} requests, {number(sent)} took longer than {quantity(long, 's')} if the clock starts when they "
        f"were sent, and {number(due)} if it starts when they were due"
    )
    if due > 1.25 * max(sent, 0):
        return (
            f"{said}. The first clock misses the others: they waited in the generator. Users "
            "experience the times of the second clock."
        )
    return f"{said}: this run does not show a difference between the two clocks."


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
