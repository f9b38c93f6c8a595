"""A step as a waterfall: the host's measured parts and the device's predicted one, one after the other or side by side.

Introduced in chapter 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lib.bench.findings.launch_overhead.overhead_rows import last_batch
from lib.bench.findings.values import cell, number, percent, positive, quantity, times, value
from lib.bench.findings.vocabulary import capital, missing
from lib.bench.measure.host_step import PARTS

HOST = "host_step"
_GAIN = 1.005  # steps per second over those before, below which there is no gain


@dataclass(frozen=True)
class Floor:
    """The least seconds of a step. host, device: the work of each, all of it."""

    host: float
    device: float
    one_by_one: float  # the device waits while the host schedules and updates
    side_by_side: float  # the longer of the two


def floor(run: Any, row: int) -> Floor | None:
    """From the host's measured parts and the predicted device; None where one is missing.

    One by one, only the sampler's launch runs beside the device: it does not need the logits.
    """
    series = run[HOST]
    parts = {part: positive(cell(series, part, row)) for part in PARTS}
    device = positive(cell(series, "device", row))
    if device is None or None in parts.values():
        return None
    host, launch = sum(parts.values()), parts["sample"]
    return Floor(host, device, host - launch + max(device, launch), max(host, device))


def asynchronous(run: Any) -> dict[str, str]:
    """What asynchronous scheduling can gain at the first batch and at the last, and what limits it there."""
    first, last = (floor(run, row) for row in (0, -1))
    if first is None or last is None:
        said = missing("the host's work in a step").sentence
        return {"async_finding": said}
    batch = value(cell(run[HOST], "batch", 0)).middle
    name = "The smallest batch" if batch is None else f"Batch {number(batch)}"
    largest = f"{capital(last_batch(run[HOST]))}: {_gain(last)} {_part(run)}"
    return {"async_finding": f"{name}: {_gain(first)} {largest}"}


def drawn_row(run: Any) -> int:
    """The row to draw: the batch that gains the most, the last one where none gains or a part is missing."""
    series = run[HOST]
    floors = [floor(run, row) for row in range(len(series["batch"]))] if series is not None else []
    gains = [found.one_by_one / found.side_by_side if found else 0.0 for found in floors]
    best = max(range(len(gains)), key=gains.__getitem__, default=-1)
    return best if gains and gains[best] >= _GAIN else -1


def drawn(run: Any) -> dict[str, str]:
    """What the figure shows: the batch that gains most, or that nothing is gained at the batch that is drawn."""
    row = drawn_row(run)
    found = floor(run, row)
    if found is None:
        return {"drawn_finding": missing("the host's work in a step").sentence}
    batch = value(cell(run[HOST], "batch", row)).middle
    name = last_batch(run[HOST]) if batch is None else f"batch {number(batch)}"
    if found.one_by_one / found.side_by_side < _GAIN:
        hidden = found.device <= (positive(cell(run[HOST], "sample", row)) or 0.0)
        why = ": the device's work is over before the sampler is launched" if hidden else ""
        return {"drawn_finding": f"The figure has {name}, where nothing is gained{why}."}
    return {
        "drawn_finding": f"The figure has {name}, the one that gains the most of those measured."
    }


def _gain(found: Floor) -> str:
    limit = (
        "the host's work takes longer than the device's and sets the pace"
        if found.host > found.device
        else "the host's work is hidden behind the device's"
    )
    return (
        f"the host needs {quantity(found.host, 's')} (measured on this machine), an H100 "
        f"{quantity(found.device, 's')} (predicted). One after the other they take at least "
        f"{quantity(found.one_by_one, 's')}, side by side {quantity(found.side_by_side, 's')}, "
        f"{_more(found.one_by_one / found.side_by_side)}: {limit}."
    )


def _more(ratio: float) -> str:
    """What a step of a shorter time gains: nothing, some percent, or times as many steps per second."""
    if ratio < _GAIN:
        return "no gain"
    return (
        f"a gain of {percent(ratio - 1)}"
        if ratio < 2
        else f"{times(ratio)} as many steps per second"
    )


def _part(run: Any) -> str:
    """The host's largest part at the last batch."""
    found = {part: positive(cell(run[HOST], part, -1)) for part in PARTS}
    largest = max(found, key=found.get)
    share = percent(found[largest] / sum(found.values()))
    return f"There the largest part of the host's time is '{largest}' with {share}."
