"""Users who do not wait: the capacity, the wait and the throughput beyond it, and Little's law.

Each function takes a run; most return sentences of chapter 6.

Introduced in chapter 6.
"""

from typing import Any

from lib.bench.findings.curves import trend
from lib.bench.findings.load_test.load_rows import PAGED, opened, shares
from lib.bench.findings.values import Measured, number, percent, positive, quantity, value
from lib.bench.findings.vocabulary import Finding, missing, versus_prediction


def capacity(run: Any) -> float | None:
    """Predicted requests per second beyond which no steady state exists."""
    series = run["open_loop"]
    return None if series is None else positive(series.params.get("capacity"))


def worst(run: Any, server: str = PAGED) -> float | None:
    """The highest offered rate, as a share of the capacity, if it is beyond the knee."""
    found = shares(run, server)
    return found[-1] if found and found[-1] > 1 else None


def best_rate(run: Any) -> Measured:
    """Most requests per second that the server without a limit completed."""
    rates = [opened(run, "request_throughput", PAGED, s) for s in shares(run, PAGED)]
    known = [r for r in rates if positive(r)]
    return max(known, key=lambda r: positive(r), default=None)


def best_model(run: Any) -> Measured:
    """Most requests per second that the model of these tests completes."""
    rates = [opened(run, "predicted_request_throughput", PAGED, s) for s in shares(run, PAGED)]
    return max((r for r in rates if positive(r)), key=lambda r: positive(r), default=None)


def long_test_wait(run: Any) -> float | None:
    """Mean wait for the first token (s) at the highest rate, by the formula for a queue that grows all the time."""
    share, series, top = worst(run), run["open_loop"], capacity(run)
    if share is None or top is None:
        return None
    n = positive(opened(run, "requests", PAGED, share))
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
    if top is None or positive(reached) is None:
        first = missing("the capacity").sentence
    else:
        first = (
            f"The predicted capacity is {quantity(top, 'requests/s')}. The most that the server completed is "
            f"{quantity(positive(reached), 'requests/s')}, {percent(positive(reached) / top)} of it: {found.verdict}."
        )
    return {
        "capacity_finding": first,
        "wait_finding": _wait(run),
        "best_finding": _best(run),
    }


def _wait(run: Any) -> str:
    found, share = shares(run, PAGED), worst(run)
    low = positive(opened(run, "ttft_mean", PAGED, found[0])) if found else None
    high = None if share is None else positive(opened(run, "ttft_mean", PAGED, share))
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
        predicted = positive(opened(run, "predicted_ttft", PAGED, share))
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
    inside = positive(opened(run, "mean_in_flight", PAGED, below[-1]))
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
