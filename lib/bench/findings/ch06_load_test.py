"""The sentences of chapter 6 that depend on what was measured.

Introduced in chapter 6.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lib.bench.findings import load_closed as closed
from lib.bench.findings import load_open as opened
from lib.bench.findings.load_rows import (
    COMPARED,
    LIMITED,
    NAMES,
    PAGED,
    SEQUENTIAL,
    by_users,
    counted,
    latency,
    middle,
    users,
)
from lib.bench.findings.load_rows import opened as row_of
from lib.bench.findings.predictions import Prediction
from lib.bench.findings.values import Measured, column, number, quantity, value
from lib.bench.findings.vocabulary import Finding, versus_prediction
from lib.bench.records.files import reference

MISSING_TWIN = "The record of that run has been replaced since."


def published_round(
    load: Mapping[str, Sequence[float]], setup: Mapping[str, Any], rate: float
) -> Finding:
    """Exercise 1: which of three readings of Little's law lies closest to the published 95th percentile."""
    n, alone, p95 = load["concurrency"][-1], load["sequential"][0], load["sequential"][-1]
    readings = {
        "all users always there": n * alone,
        "one round at the rate of a single user": 0.95 * n * alone,
        "one round at the rate that was kept under load": 0.95 * n * setup["max_tokens"] / rate,
    }
    best = min(readings, key=lambda name: abs(readings[name] / p95 - 1))
    near = [name for name, x in readings.items() if abs(x / p95 - 1) <= 0.1]
    text = f"The published {quantity(p95, 's')} lies closest to {best} ({quantity(readings[best], 's')})"
    if len(near) > 1:
        text += f"; {number(len(near))} of the three readings lie within 10 % of it, so the number alone does not decide"
    return Finding(text, best)


def exercise() -> dict[str, str]:
    """The solution of exercise 1, from the published numbers."""
    published = reference()
    rate = published["load_c64"]["sequential_tok_s"][0]
    found = published_round(published["load_p95_s"], published["load_setup"], rate)
    return {"published_finding": found.sentence}


def early_run(records: Sequence[Any]) -> Any:
    """The first record of a run that measured each server once, before servers took turns; None without one."""
    found = [(run, run["open_loop"]) for run in records]
    return next((run for run, series in found if series is not None and "turn" not in series), None)


def early_twin(run: Any) -> dict[str, str]:
    """The control of the first recorded run, for what broke; `run` is None where it is no longer kept."""
    found = (
        MISSING_TWIN if run is None else opened.twin(run)["twin_finding"].partition(" The two")[0]
    )
    return {"early_twin": found}


def lessons(run: Any, open_run: Any = None) -> dict[str, str]:
    """The first two takeaways, by what was measured; `open_run`: the run of the overload, where another."""
    cause, good = closed.gain_cause(run), opened.goodput_gain(run if open_run is None else open_run)
    if cause.kind == "batching":
        first = "The gain over a sequential server comes from the scheduler."
    else:
        first = cause.sentence
    points = closed.fit(run)
    near = sum(abs(p[0] - 1) <= 0.25 for p in points)
    if points and near == len(points):
        second = "Two measurements and Little's law predict throughput by users within a quarter."
    elif points:
        second = f"The model from two measurements misses {len(points) - near} of {len(points)} points by more than a quarter."
    else:
        second = "The model of two measurements was not judged here."
    if good.direction > 0:
        second += (
            " Above the capacity, a limit on the queue keeps goodput that a longer queue loses."
        )
    return {"gain_lesson": first, "model_lesson": second}


def render(run: Any) -> dict[str, str]:
    """Every sentence of the chapter, by the name under which the chapter glues it."""
    parts = (
        closed.foretold, closed.line_bound, closed.throughput, closed.latencies, closed.queue, closed.prompts,
        closed.http, opened.stall, opened.knee, opened.law, opened.twin, opened.goodput, opened.patterns, lessons,
        early_twin,
    )  # fmt: skip
    found = exercise()
    for part in parts:
        found |= part(run)
    return found


def predictions(
    run: Any, open_run: Any = None, pattern_run: Any = None, stall_run: Any = None
) -> list[Prediction]:
    """The chapter's predictions, for the table at its end; the other runs where another gate picked another run."""
    open_run = run if open_run is None else open_run
    rows = [
        *_stall(run if stall_run is None else stall_run),
        *_closed(run),
        *_open(open_run),
        *_patterns(open_run if pattern_run is None else pattern_run),
    ]
    return [_without_excuse(row) for row in rows]


def _stall(run: Any) -> list[Prediction]:
    series = run["stall_count"]
    slow, want = (column(series, name) for name in ("slow", "expected"))
    due, sent = (
        (want[i], slow[i]) if len(slow) > i and len(want) > i else (None, None) for i in (0, 1)
    )
    return [
        Prediction("slow requests in a stall, since due: rate × stall", *due, unit="requests"),
        Prediction("the same since sent: the places", *sent, unit="requests", sense="at most"),
    ]


def _closed(run: Any) -> list[Prediction]:
    levels, rows = users(run), []
    for name in COMPARED:
        got, want = by_users(run, name), by_users(run, f"{name}, predicted")
        pairs = [(m, p, n) for m, p, n in zip(got, want, levels) if middle(m) and middle(p)]
        found = max(pairs, key=_distance, default=(None, None, None))
        at = (
            f"the furthest point, {counted(found[2], 'user')}"
            if found[2] is not None
            else "the furthest point"
        )
        rows.append(
            Prediction(f"throughput of {NAMES[name]}, {at}", found[1], found[0], unit="tokens/s")
        )
    row, batching_paging = closed.gain_at(run), closed.factors(run)
    want = [closed.predicted_at(run, name, row) for name in COMPARED]
    foretold = closed.ratio(want[1], want[0]), closed.ratio(want[2], want[1])
    for what, p, m in zip(("batching", "paging"), foretold, batching_paging):
        rows.append(Prediction(f"gain by {what}", p, m, unit="×"))
    rows.append(
        Prediction(
            "throughput of the sequential server by users", "flat", closed.flat_trend(run), unit=""
        )
    )
    all_there, answered = _all_there(run), latency(run, SEQUENTIAL, "p50", -1)
    rows.append(
        Prediction(
            "median answer of the sequential server, most users: N/X, all of them always there",
            all_there, answered,
            "most of these requests belong to the first round, and the queue was shorter when they came"
            if middle(answered) and all_there and middle(answered) < all_there else "",
        )
    )  # fmt: skip
    gain = closed.long_prompt_gain(run)
    rows.append(
        Prediction("gain by batching with the longest prompts, if both servers pay a prompt alike", *gain,
                   _prompts_shared(run), unit="×")
    )  # fmt: skip
    return rows


def _prompts_shared(run: Any) -> str:
    """Whether a longer prompt adds less to a request in a batch than to one alone."""
    costs = closed.prompt_cost(run)
    if costs is None or costs[1] >= costs[0]:
        return ""
    alone, shared = (quantity(cost, "s") for cost in costs)
    return f"the longer prompt adds {shared} to a request in a batch, and {alone} to one alone"


def _distance(pair: tuple[Measured, Measured, float]) -> float:
    ratio = middle(pair[0]) / middle(pair[1])
    return max(ratio, 1 / ratio)


def _all_there(run: Any) -> float | None:
    """Users over the predicted answers per second."""
    predicted, levels = by_users(run, f"{SEQUENTIAL}, predicted"), users(run)
    series = run["throughput_by_users"]
    answer = None if series is None else series.params.get("answer")
    rate = middle(predicted[-1]) if predicted else None
    return levels[-1] * answer / rate if levels and answer and rate else None


def _open(run: Any) -> list[Prediction]:
    share, limited = opened.worst(run), opened.worst(run, LIMITED)

    def at(name: str, server: str, where: float | None) -> Measured:
        return None if where is None else row_of(run, name, server, where)

    def share_of(name: str) -> float | None:
        found = value(at(name, LIMITED, limited)).middle
        return None if found is None else 100 * found

    refused = share_of("rejected_fraction")
    times_of = "" if share is None else f" at {number(share)} times the capacity"
    return [
        Prediction("requests inside below the capacity: Little's law", *opened.little(run), unit="requests"),
        Prediction("most requests completed per second: the capacity", opened.capacity(run), opened.best_rate(run),
                   _finite(opened.best_model(run), opened.best_rate(run)), "requests/s"),
        Prediction("the same: model of this test", opened.best_model(run), opened.best_rate(run), unit="requests/s"),
        Prediction("throughput beyond the knee", "flat", opened.best_trend(run), unit=""),
        Prediction(f"mean wait for the first token{times_of}: formula for a long test",
                   opened.long_test_wait(run), at("ttft_mean", PAGED, share)),
        Prediction("the same: model of this test", at("predicted_ttft", PAGED, share), at("ttft_mean", PAGED, share)),
        Prediction("goodput without a limit, from the capacity on", "falls", opened.goodput_trend(run), unit=""),
        Prediction("goodput with a limit: model of this test", at("predicted_goodput", LIMITED, limited),
                   at("goodput", LIMITED, limited), unit="requests/s"),
        Prediction("share refused: formula for a long test", None if limited is None else 100 * (1 - 1 / limited), refused,
                   _finite(share_of("predicted_rejected"), refused), "%"),
        Prediction("the same: model of this test", share_of("predicted_rejected"), refused, unit="%"),
    ]  # fmt: skip


def _finite(model: Measured, measured: Measured) -> str:
    """Whether the start and the end of a short test explain a difference: the model that has them is right."""
    if versus_prediction(model, measured).kind not in ("about", "little"):
        return ""
    return "this test begins and ends with an empty server, as the model of it says"


def _patterns(run: Any) -> list[Prediction]:
    order, words = opened.pattern_order(run)
    easiest = "steady" if opened.steady_is_easiest(run) else order[0] if order else "missing"
    steady = Finding(words.text, easiest)
    return [Prediction("the easiest pattern of arrivals", "steady", steady, unit="")]


def _without_excuse(row: Prediction) -> Prediction:
    """A cause of a deviation stands beside a deviation only."""
    off = row.verdict == "the prediction failed" or row.verdict.startswith("a little")
    why = row.why if off else ""
    failed = row.verdict == "the prediction failed"
    return replace(row, why=why or ("no cause was measured" if failed else ""))
