"""What is compared takes turns: load tools beside ours, round by round, and servers. Introduced in chapter 6."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, TypeVar

from lib.bench.measure.timing import Rates, Timing
from lib.loadtest.readings import OURS, Reading
from lib.loadtest.requests import LoadRequest, make_requests

T = TypeVar("T")

WORKLOAD = "long"
TIMES = ("ttft", "tpot", "throughput")


def make_work(n: int, fewest: int, most: int) -> list[LoadRequest]:
    """n text prompts of FIXED[WORKLOAD] tokens; seeded answer lengths from `fewest` to `most`.

    With answers of one length, all users' requests end in the same step and the next ones arrive together. A
    millisecond then decides which of them share the next step, and TTFT takes one of two values.
    """
    rng = random.Random(0)
    prompts = make_requests(WORKLOAD, n, text=True)
    return [LoadRequest(request.prompt, rng.randint(fewest, most)) for request in prompts]


def compare(tools: Mapping[str, Callable[[], Reading]], rounds: int) -> dict[str, list[Reading]]:
    """Each tool's readings, one per round, after a warm-up round in which the server compiles.

    The order rotates by one from round to round, so that no tool always runs first.
    """
    readings: dict[str, list[Reading]] = {name: [] for name in tools}
    for turn in range(1 + rounds):
        names = list(tools)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            sys.stderr.write(f"round {turn} of {rounds}: {name}\n")
            reading = tools[name]()
            if turn:
                readings[name].append(reading)
    return readings


def rows(readings: Mapping[str, Sequence[Reading]]) -> list[dict[str, Any]]:
    """One row per tool, ours first: medians over the rounds with all samples, and their ratios to ours."""
    result = []
    for tool, found in readings.items():
        row: dict[str, Any] = {
            "tool": tool,
            "version": found[0].version,
            "completed": sum(r.completed for r in found),
        }
        for name in TIMES:
            kind = Rates if name == "throughput" else Timing
            row[name] = kind(tuple(getattr(reading, name) for reading in found))
            row[f"{name}_over_ours"] = row[name].median / median(
                getattr(r, name) for r in readings[OURS]
            )
        result.append(row | {"lagged": sum(reading.lagged for reading in found)})
    return result


def in_turns(runs: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Results by name, one per round: a, b, c, then b, c, a, … so that a disturbance falls on all of them."""
    found: dict[str, list[T]] = {name: [] for name in runs}
    for turn in range(rounds):
        names = list(runs)
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(runs[name]())
    return found
