"""The sentences of chapter 13 on its formulas: tensor parallelism by Amdahl's law, and queues by Erlang's.

Introduced in chapter 13.
"""

from typing import Any

from lib.bench.findings.many_machines.fleet_rows import number_of
from lib.bench.findings.values import cell, number, over, percent, times, value
from lib.bench.findings.vocabulary import missing
from lib.bench.records.series import Series


def amdahl(run: Any) -> dict[str, str]:
    """The sentence under the figure of tensor parallelism: where more devices stop helping."""
    series = run["tensor_parallel_by_devices"]
    devices = series["devices"] if series is not None and "devices" in series else []
    parts = []
    for name in ("NVLink, 2 µs", "between machines, 10 µs"):
        ratios = [number_of(series, row, name) for row in range(len(devices))]
        known = [(r, d) for r, d in zip(ratios, devices) if r]
        if known:
            best, at = max(known)
            where = "NVLink" if name.startswith("NVLink") else "a network between machines"
            parts.append(
                f"{times(best)} at {number(at)} devices with {where}"
                if best > 1 and at > 1
                else f"none with {where}"
            )
    if not parts:
        return {"amdahl_finding": missing("the gain of tensor parallelism").sentence}
    gains = ", and ".join(parts)
    return {"amdahl_finding": f"With communication, the largest speed-up in the figure is {gains}."}


def queues(run: Any) -> dict[str, str]:
    """The sentences on Erlang's formula: the simulator's error, and what the choice of the queue is worth."""
    series = run["one_queue_or_two"]
    errors = [_largest_error(series, name) for name in ("one queue", "two queues, at random")]
    known = [error for error in errors if error is not None]
    said = missing("the simulator's error").sentence
    if known:
        said = (
            f"The simulated waits differ from the closed forms by at most {percent(max(known))} "
            "at any load in the figure."
        )
    names = ("one queue", "two queues, the shorter", "two queues, at random", "two queues, in turn")
    one, shorter, at_random, in_turn = (number_of(series, -1, name) for name in names)
    load = value(cell(series, "load", -1)).middle
    choice = missing("the wait by queue").sentence
    if None not in (one, shorter, at_random, load):
        choice = (
            f"At a load of {percent(load)}, requests wait {number(at_random)} service times with two queues "
            f"chosen at random, {f'{number(in_turn)} with two queues in turn, ' if in_turn else ''}"
            f"{number(shorter)} with the shorter of the two, and {number(one)} with one queue."
        )
        if one < shorter < at_random:
            gained = (at_random - shorter) / (at_random - one)
            choice += (
                f" So the choice of the shorter queue makes up for {percent(gained)} of the difference between "
                "the random choice and one queue."
            )
    return {"erlang_finding": said, "queues_finding": choice}


def _largest_error(series: Series | None, name: str) -> float | None:
    """Largest |simulated / closed form - 1| over the loads."""
    closed = f"{name}, closed form"
    rows = len(series[name]) if series is not None and name in series else 0
    ratios = [over(number_of(series, r, name), number_of(series, r, closed)) for r in range(rows)]
    errors = [abs(ratio - 1) for ratio in ratios if ratio is not None]
    return max(errors, default=None)
