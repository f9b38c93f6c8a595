"""The parts of a claim: what it says, where its measurement is, and how a verdict is reached.

Introduced in chapter 6.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lib.bench.records.files import Reference, Run
from lib.bench.records.series import Series

REPRODUCED, REFUTED, DEPENDS, UNMEASURED = (
    "reproduced",
    "not reproduced",
    "depends on",
    "not measured here",
)
TOLERANCE = 0.25  # a timed figure is as published when it is within a quarter of it
NOISE = 0.05  # timings of the same work differ by as much: a smaller difference shows no direction
HARDWARE = "the hardware"

Records = Mapping[
    str, Run
]  # one hardware's runs by the number of the chapter: {"02": ..., "03": ...}


@dataclass(frozen=True)
class Outcome:
    """What one hardware's records say about a claim: a value with its unit, and the verdict."""

    value: str
    verdict: str


@dataclass(frozen=True)
class Claim:
    """A published figure or sentence. `judge` returns None where the records lack what it needs.

    kind: "headline", "finding" or "failure". published: the figure, or a failure's cause; empty where the text has it.
    section: the label of the chapter's section that treats it. why: one sentence.
    """

    kind: str
    text: str
    published: str
    judge: Callable[[Records, Reference], Outcome | None]
    section: str
    why: str


def decide(
    holds: bool,
    ours: float | None,
    theirs: float | None,
    *,
    full: bool = True,
    size: str = HARDWARE,
) -> str:
    """The verdict of a claim that has a figure.

    holds: whether the claim's direction does. ours, theirs: the figure at the same size, None where the two runs have
    no size in common. full: whether the size that the claim names was run. size: what that size is of.
    """
    if not holds:
        return REFUTED
    if ours is None or not theirs:
        return f"{DEPENDS} {size}"
    if abs(ours / theirs - 1) > TOLERANCE:
        return f"{DEPENDS} {HARDWARE}"
    return REPRODUCED if full else f"{DEPENDS} {size}"


def ratio(a: float | None, b: float | None) -> float | None:
    """a / b; None where one is missing or b is zero."""
    return None if a is None or not b else a / b


def nearest(sizes: Sequence[float], wanted: float) -> int:
    """Index of the size that is nearest to `wanted` by their ratio. Sizes are above zero."""
    return min(range(len(sizes)), key=lambda i: max(sizes[i] / wanted, wanted / sizes[i]))


def times(value: float) -> str:
    """A factor as text: 118×, 11.1×, 2.22×."""
    return (
        f"{value:.0f}×" if value >= 99.5 else f"{value:.1f}×" if value >= 9.95 else f"{value:.2f}×"
    )


def get(records: Records, chapter: str, name: str) -> Series | None:
    """A chapter's measurement, None where there is no record or no such measurement."""
    return records[chapter][name] if chapter in records else None


def gains(series: Series | None, sizes: str, over: str, under: str) -> dict[float, float]:
    """{size: column `over` / column `under`}, without the rows where either is missing or zero."""
    rows = [] if series is None else series.rows()
    pairs = {row[sizes]: ratio(row[over], row[under]) for row in rows}
    return {size: value for size, value in pairs.items() if value}
