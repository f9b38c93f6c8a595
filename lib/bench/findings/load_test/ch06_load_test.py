"""The sentences of chapter 6 that depend on what was measured.

Introduced in chapter 6.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lib.bench.findings.load_test.load_goodput import (
    goodput,
    goodput_gain,
    twin,
    twins,
    twins_reason,
)
from lib.bench.findings.load_test.load_knee import best_rate, knee, law
from lib.bench.findings.load_test.load_latency import latencies, queue
from lib.bench.findings.load_test.load_model import foretold, line_bound
from lib.bench.findings.load_test.load_patterns import CALLED, patterns
from lib.bench.findings.load_test.load_predictions import predictions
from lib.bench.findings.load_test.load_prompts import prompts
from lib.bench.findings.load_test.load_stall import expected_slow, slow_requests, stall
from lib.bench.findings.load_test.load_throughput import factors, fit, gain_cause, http, throughput
from lib.bench.findings.values import number, quantity
from lib.bench.findings.vocabulary import Finding
from lib.bench.records.files import reference

__all__ = [
    "CALLED", "best_rate", "exercise", "expected_slow", "factors", "foretold",
    "goodput", "http", "knee", "latencies", "law", "lessons", "line_bound", "patterns",
    "predictions", "prompts", "queue", "render", "slow_requests", "stall", "throughput", "twin",
    "twins", "twins_reason",
]  # fmt: skip


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


def lessons(run: Any, open_run: Any = None) -> dict[str, str]:
    """The first two takeaways, by what was measured; `open_run`: the run of the overload, where another."""
    cause, good = gain_cause(run), goodput_gain(run if open_run is None else open_run)
    if cause.kind == "batching":
        first = "The gain over a sequential server comes from the scheduler."
    else:
        first = cause.sentence
    points = fit(run)
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
        foretold, line_bound, throughput, latencies, queue, prompts, http, stall, knee, law, twin,
        goodput, patterns, lessons,
    )  # fmt: skip
    found = exercise()
    for part in parts:
        found |= part(run)
    return found
