"""The sentences of chapter 6 about users who do not wait: the knee, goodput, refusals, patterns of arrival.

Introduced in chapter 6.
"""

from typing import Any

from lib.bench.findings.curves import ordering, trend
from lib.bench.findings.load_rows import (
    LIMITED,
    NAMES,
    PAGED,
    cells,
    labels,
    middle,
    opened,
    shares,
)
from lib.bench.findings.values import (
    Measured,
    cell,
    column,
    number,
    percent,
    quantity,
    times,
    value,
)
from lib.bench.findings.vocabulary import Finding, compare, missing, versus_prediction

KINDS = ("steady", "poisson", "gamma", "burst")
CALLED = {
    "steady": "steady arrivals",
    "poisson": "random arrivals",
    "gamma": "clusters",
    "burst": "all at once",
}


def capacity(run: Any) -> float | None:
    """Predicted requests per second beyond which no steady state exists."""
    series = run["open_loop"]
    return None if series is None else middle(series.params.get("capacity"))


def worst(run: Any, server: str = PAGED) -> float | None:
    """The highest offered rate, as a share of the capacity, if it is beyond the knee."""
    found = shares(run, server)
    return found[-1] if found and found[-1] > 1 else None


def best_rate(run: Any) -> Measured:
    """Most requests per second that the server without a limit completed."""
    rates = [opened(run, "request_throughput", PAGED, s) for s in shares(run, PAGED)]
    known = [r for r in rates if middle(r)]
    return max(known, key=lambda r: middle(r), default=None)


def best_model(run: Any) -> Measured:
    """Most requests per second that the model of these tests completes."""
    rates = [opened(run, "predicted_request_throughput", PAGED, s) for s in shares(run, PAGED)]
    return max((r for r in rates if middle(r)), key=lambda r: middle(r), default=None)


def long_test_wait(run: Any) -> float | None:
    """Mean wait for the first token (s) at the highest rate, by the formula for a queue that grows all the time."""
    share, series, top = worst(run), run["open_loop"], capacity(run)
    if share is None or top is None:
        return None
    n = middle(opened(run, "requests", PAGED, share))
    seats, answer = _seats(run), series.params.get("answer")
    if n is None or not seats or not answer:
        return None
    return 1.5 * seats / (answer * top) + (share - 1) * n / (share * top) / 2


def _seats(run: Any) -> float | None:
    series = run["closed_loop"]
    return None if series is None else series.params.get("max_num_seqs")


def knee(run: Any) -> dict[str, str]:
    """The sentences under the figure of TTFT by offered rate."""
    top, reached = capacity(run), best_rate(run)
    found = versus_prediction(top, reached, "requests/s")
    if top is None or middle(reached) is None:
        first = missing("the capacity").sentence
    else:
        first = (
            f"The predicted capacity is {quantity(top, 'requests/s')}. The most that the server completed is "
            f"{quantity(middle(reached), 'requests/s')}, {percent(middle(reached) / top)} of it: {found.verdict}."
        )
    return {
        "capacity_finding": first,
        "wait_finding": _wait(run),
        "best_finding": _best(run),
    }


def _wait(run: Any) -> str:
    found, share = shares(run, PAGED), worst(run)
    low = middle(opened(run, "ttft_mean", PAGED, found[0])) if found else None
    high = None if share is None else middle(opened(run, "ttft_mean", PAGED, share))
    if low is None or high is None:
        return missing("the wait for the first token in overload").sentence
    said = (
        f"At {number(found[0])} times the capacity, the first token takes {quantity(low, 's')} on average; at "
        f"{number(share)} times, {quantity(high, 's')}"
    )
    formula = versus_prediction(long_test_wait(run), high)
    model = versus_prediction(opened(run, "predicted_ttft", PAGED, share), high)
    if formula.kind != "missing":
        said += f". The formula for a long test says {quantity(long_test_wait(run), 's')}: {formula.verdict}"
    if model.kind != "missing":
        predicted = middle(opened(run, "predicted_ttft", PAGED, share))
        said += f". The model of this test says {quantity(predicted, 's')}: {model.verdict}"
    return f"{said}."


def best_trend(run: Any) -> Finding:
    """Throughput beyond the knee: "flat" where it stays at its best."""
    beyond = [s for s in shares(run, PAGED) if s > 1]
    return trend(
        beyond, [opened(run, "request_throughput", PAGED, s) for s in beyond], "requests/s"
    )


def _best(run: Any) -> str:
    found = best_trend(run)
    if found.kind == "missing":
        return missing("the throughput beyond the knee").sentence
    blind = " Throughput alone does not show the overload." if found.kind == "flat" else ""
    return f"Above the capacity the throughput {found}.{blind}"


def little(run: Any) -> tuple[float | None, float | None]:
    """Requests inside at the highest rate below the knee: (rate times time, as the server's gauges counted)."""
    below = [s for s in shares(run, PAGED) if s < 1]
    if not below:
        return None, None
    inside = middle(opened(run, "mean_in_flight", PAGED, below[-1]))
    running, waiting = (
        value(opened(run, f"{g}_mean", PAGED, below[-1])).middle for g in ("running", "waiting")
    )
    counted = None if running is None or waiting is None else running + waiting
    return inside, counted if counted and counted > 0 else None


def law(run: Any) -> dict[str, str]:
    """Little's law below the knee."""
    by_law, counted = little(run)
    found = versus_prediction(by_law, counted, "requests")
    if by_law is None or counted is None:
        return {"little_finding": missing("the number of requests inside").sentence}
    share = [s for s in shares(run, PAGED) if s < 1][-1]
    return {
        "little_finding": f"At {number(share)} times the capacity, rate times time gives {number(by_law)} requests inside, "
        f"and the server's own gauges, read twice a second, {number(counted)}: {found.verdict}."
    }


def twins(run: Any) -> Finding:
    """Whether the two copies of the paged server are equally fast, at the lowest rate that both had."""
    both = [s for s in shares(run, LIMITED) if s in shares(run, PAGED)]
    if not both or both[0] >= 1:
        return missing("the control of the two copies below the capacity")
    limited, free = (opened(run, "tpot_p50", name, both[0]) for name in (LIMITED, PAGED))
    return compare(limited, free, NAMES[LIMITED], "its copy without one")


def twin(run: Any) -> dict[str, str]:
    """The control: the same program twice, where the limit has nothing to refuse."""
    found = twins(run)
    if found.kind in ("missing", "undefined"):
        return {
            "twin_finding": missing("the control of the two copies below the capacity").sentence
        }
    share = [s for s in shares(run, LIMITED) if s in shares(run, PAGED)][0]
    said = f"At {number(share)} times the capacity, by the time of a token, {found}"
    if found.kind in ("about", "little"):
        return {"twin_finding": f"{said}. The two can be compared."}
    if found.kind == "cannot tell":
        return {"twin_finding": f"{said}."}
    return {
        "twin_finding": f"{said}. The two run the same program, so this difference is no effect of the limit, and what "
        "follows compares two servers that are not alike."
    }


def goodput_gain(run: Any) -> Finding:
    """Goodput in overload, with a limit against without."""
    share = worst(run, LIMITED)
    if share is None:
        return missing("goodput in overload")
    limited, free = (opened(run, "goodput", name, share) for name in (LIMITED, PAGED))
    if middle(limited) and value(free).middle == 0:
        kept = quantity(middle(limited), "requests/s")
        text = f"{NAMES[LIMITED]} keeps a goodput of {kept}, and the one without has none"
        return Finding(text, "several", None, 1)
    return compare(
        limited, free, NAMES[LIMITED], "the one without", what="goodput", unit="requests/s"
    )


def goodput(run: Any) -> dict[str, str]:
    """The sentences under the figure of what became of each request."""
    share, found = worst(run, LIMITED), goodput_gain(run)
    if share is None or found.kind == "missing":
        first = missing("goodput in overload").sentence
    else:
        first = f"At {number(share)} times the capacity, {found}."
        alike = twins(run)
        if found.direction > 0 and alike.direction > 0:
            first += " This server has more although it is the slower of the two."
        if found.direction <= 0 and found.kind not in ("missing", "cannot tell", "undefined"):
            first += " The prediction failed: the limit brought no goodput."
    return {
        "goodput_finding": first,
        "refused_finding": _refused(run, share),
        "outcomes_finding": _outcomes(run),
    }


def _refused(run: Any, share: float | None) -> str:
    refused = None if share is None else opened(run, "rejected_fraction", LIMITED, share)
    n, count = (
        None if share is None else value(opened(run, name, LIMITED, share)).middle
        for name in ("requests", "rejected")
    )
    got = value(refused).middle
    if got is None or got < 0 or n is None or count is None:
        return missing("the share that was refused").sentence
    formula = versus_prediction(1 - 1 / share, refused)
    said = (
        f"Of {number(n)} requests it refused {number(count)}, {percent(got)}. In a long test the share is "
        f"{percent(1 - 1 / share)}: {formula.verdict}"
    )
    predicted = value(opened(run, "predicted_rejected", LIMITED, share)).middle
    if predicted is not None:
        model = versus_prediction(predicted, refused)
        said += f". The model of this test, which begins with an empty server, says {percent(predicted)}: {model.verdict}"
    return f"{said}."


def _outcomes(run: Any) -> str:
    series = run["open_loop"]
    lost_by = [column(series, name) for name in ("failed", "timeout", "unsent")]
    if series is None or not all(lost_by):
        return missing("the outcome of each request").sentence
    lost = sum(value(x).middle or 0 for found in lost_by for x in found)
    if lost:
        return f"{number(abs(lost))} requests failed or were never sent, so the rates above leave something out."
    return "No request failed on either server."


def goodput_trend(run: Any) -> Finding:
    """Goodput without a limit from just below the knee on."""
    near = [s for s in shares(run, PAGED) if s > 0.8]
    return trend(near, [opened(run, "goodput", PAGED, s) for s in near], "requests/s")


def pattern_order(run: Any) -> tuple[list[str], Finding]:
    """The patterns by their 95th percentile of TTFT, shortest first, and the same in words."""
    series = run["patterns"]
    found = {k: cells(series, "ttft_p95", pattern=k) for k in KINDS}
    known = {k: m for k, m in found.items() if middle(m)}
    if len(known) < len(KINDS):
        return [], missing("the comparison of four patterns of arrival")
    order = sorted(known, key=lambda k: middle(known[k]))
    return order, ordering({CALLED[k]: known[k] for k in KINDS})


def steady_is_easiest(run: Any) -> bool:
    """Whether no pattern has a 95th percentile that is more than 10 % shorter than that of the steady one."""
    order, _ = pattern_order(run)
    p95 = [middle(cells(run["patterns"], "ttft_p95", pattern=k)) for k in ("steady", *order[:1])]
    return bool(order) and p95[0] <= 1.1 * p95[1]


def patterns(run: Any) -> dict[str, str]:
    """Which pattern of arrival is the easiest."""
    order, found = pattern_order(run)
    if not order:
        return {"patterns_finding": found.sentence}
    said = f"By the 95th percentile of the TTFT: {found}."
    series = run["patterns"]
    p95 = {k: middle(cells(series, "ttft_p95", pattern=k)) for k in KINDS}
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
