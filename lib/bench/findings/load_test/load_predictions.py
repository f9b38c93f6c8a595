"""The predictions of chapter 6, each beside what was measured, for the table at its end.

Introduced in chapter 6.
"""

from typing import Any

from lib.bench.findings.load_test.load_goodput import goodput_trend
from lib.bench.findings.load_test.load_knee import (
    best_model,
    best_rate,
    best_trend,
    capacity,
    little,
    long_test_wait,
    worst,
)
from lib.bench.findings.load_test.load_model import gain_at, predicted_at, ratio
from lib.bench.findings.load_test.load_patterns import easiest, pattern_order
from lib.bench.findings.load_test.load_prompts import long_prompt_gain, prompt_cost
from lib.bench.findings.load_test.load_rows import (
    COMPARED,
    LIMITED,
    NAMES,
    PAGED,
    SEQUENTIAL,
    by_users,
    counted,
    latency,
    opened,
    users,
)
from lib.bench.findings.load_test.load_stall import expected_slow, slow_cause
from lib.bench.findings.load_test.load_throughput import factors, flat_trend
from lib.bench.findings.predictions import Prediction, with_causes
from lib.bench.findings.values import Measured, column, number, positive, quantity, value


def predictions(
    run: Any,
    open_run: Any = None,
    pattern_run: Any = None,
    stall_run: Any = None,
    length_run: Any = None,
) -> list[Prediction]:
    """The chapter's predictions, for the table at its end; the other runs where another gate picked another run."""
    open_run = run if open_run is None else open_run
    rows = [
        *_stall(run if stall_run is None else stall_run),
        *_closed(run, run if length_run is None else length_run),
        *_open(open_run),
        *_patterns(open_run if pattern_run is None else pattern_run),
    ]
    return with_causes(rows)


def _stall(run: Any) -> list[Prediction]:
    series = run["stall_count"]
    slow, want = (column(series, name) for name in ("slow", "expected"))
    due, sent = (
        (want[i], slow[i]) if len(slow) > i and len(want) > i else (None, None) for i in (0, 1)
    )
    return [
        Prediction(
            "slow requests in a stall, since due",
            expected_slow(run),
            due[1],
            slow_cause(run),
            "requests",
        ),
        Prediction("the same since sent: the places", *sent, unit="requests", sense="at most"),
    ]


def _closed(run: Any, length_run: Any) -> list[Prediction]:
    levels, rows = users(run), []
    for name in COMPARED:
        got, want = by_users(run, name), by_users(run, f"{name}, predicted")
        pairs = [(m, p, n) for m, p, n in zip(got, want, levels) if positive(m) and positive(p)]
        found = max(pairs, key=_distance, default=(None, None, None))
        at = (
            f"the furthest point, {counted(found[2], 'user')}"
            if found[2] is not None
            else "the furthest point"
        )
        rows.append(
            Prediction(f"throughput of {NAMES[name]}, {at}", found[1], found[0], unit="tokens/s")
        )
    row, batching_paging = gain_at(run), factors(run)
    want = [predicted_at(run, name, row) for name in COMPARED]
    foretold = ratio(want[1], want[0]), ratio(want[2], want[1])
    for what, p, m in zip(("batching", "paging"), foretold, batching_paging):
        rows.append(Prediction(f"gain by {what}", p, m, unit="×"))
    rows.append(
        Prediction("throughput of the sequential server by users", "flat", flat_trend(run), unit="")
    )
    all_there, answered = _all_there(run), latency(run, SEQUENTIAL, "p50", -1)
    rows.append(
        Prediction(
            "median answer of the sequential server, most users: N/X, all of them always there",
            all_there, answered,
            "most of these requests belong to the first round, and the queue was shorter when they came"
            if positive(answered) and all_there and positive(answered) < all_there else "",
        )
    )  # fmt: skip
    gain = long_prompt_gain(length_run)
    rows.append(
        Prediction("gain by batching with the longest prompts, if both servers pay a prompt alike", *gain,
                   _prompts_shared(length_run), unit="×")
    )  # fmt: skip
    return rows


def _prompts_shared(run: Any) -> str:
    """Whether a longer prompt adds less to a request in a batch than to one alone."""
    costs = prompt_cost(run)
    if costs is None or costs[1] >= costs[0]:
        return ""
    alone, shared = (quantity(cost, "s") for cost in costs)
    return f"the longer prompt adds {shared} to a request in a batch, and {alone} to one alone"


def _distance(pair: tuple[Measured, Measured, float]) -> float:
    ratio = positive(pair[0]) / positive(pair[1])
    return max(ratio, 1 / ratio)


def _all_there(run: Any) -> float | None:
    """Users over the predicted answers per second."""
    predicted, levels = by_users(run, f"{SEQUENTIAL}, predicted"), users(run)
    series = run["throughput_by_users"]
    answer = None if series is None else series.params.get("answer")
    rate = positive(predicted[-1]) if predicted else None
    return levels[-1] * answer / rate if levels and answer and rate else None


def _open(run: Any) -> list[Prediction]:
    share, limited = worst(run), worst(run, LIMITED)

    def at(name: str, server: str, where: float | None) -> Measured:
        return None if where is None else opened(run, name, server, where)

    def share_of(name: str) -> float | None:
        found = value(at(name, LIMITED, limited)).middle
        return None if found is None else 100 * found

    refused = share_of("rejected_fraction")
    long_test = None if limited is None else 100 * (1 - 1 / limited)
    times_of = "" if share is None else f" at {number(share)} times the capacity"
    return [
        Prediction("requests inside below the capacity: Little's law", *little(run), unit="requests"),
        Prediction("most requests completed per second: the capacity", capacity(run), best_rate(run),
                   _finite(capacity(run), best_model(run), best_rate(run)), "requests/s"),
        Prediction("the same: model of this test", best_model(run), best_rate(run), unit="requests/s"),
        Prediction("throughput beyond the knee", "flat", best_trend(run), unit=""),
        Prediction(f"mean wait for the first token{times_of}: formula for a long test",
                   long_test_wait(run), at("ttft_mean", PAGED, share)),
        Prediction("the same: model of this test", at("predicted_ttft", PAGED, share), at("ttft_mean", PAGED, share)),
        Prediction("goodput without a limit, from the capacity on", "falls", goodput_trend(run), unit=""),
        Prediction("goodput with a limit: model of this test", at("predicted_goodput", LIMITED, limited),
                   at("goodput", LIMITED, limited), unit="requests/s"),
        Prediction("share refused: formula for a long test", long_test, refused,
                   _finite(long_test, share_of("predicted_rejected"), refused), "%"),
        Prediction("the same: model of this test", share_of("predicted_rejected"), refused, unit="%"),
    ]  # fmt: skip


def _finite(formula: Measured, model: Measured, measured: Measured) -> str:
    """Whether the start and the end of a short test explain most of a difference: the model that has them is near."""
    long, short, found = (value(x).middle for x in (formula, model, measured))
    if long is None or short is None or found is None or abs(short - found) > abs(long - found) / 2:
        return ""
    return "this test begins and ends with an empty server, as the model of it says"


def _patterns(run: Any) -> list[Prediction]:
    why = f"p95 of TTFT: {pattern_order(run)[1]}"
    return [Prediction("the easiest pattern of arrivals", "steady", easiest(run), why)]
