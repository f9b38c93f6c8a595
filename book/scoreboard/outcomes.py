"""The parts of a claim: what it says, where its measurement is, and how a verdict is reached.

Introduced in chapter 6.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lib.bench.findings.values import Measured, Value, cell, value
from lib.bench.findings.vocabulary import ABOUT, LITTLE, compare
from lib.bench.records.files import Reference, Run
from lib.bench.records.series import Series

REPRODUCED, COUNTED, NOT_COMPARABLE, INCONCLUSIVE, REFUTED, MIXED, UNMEASURED = (
    "reproduced",
    "reproduced by count",
    "not comparable yet",
    "inconclusive",
    "not reproduced",
    "differs between machines",
    "not measured here",
)
VERDICTS = (REPRODUCED, COUNTED, NOT_COMPARABLE, INCONCLUSIVE, REFUTED, MIXED, UNMEASURED)
TOLERANCE = LITTLE  # a timed figure is as published when it is within a quarter of it
NOISE = ABOUT  # what differs by less has no direction, and a curve that stays within it is flat
EXACT = 0.01  # a counted figure is as published when it is within a hundredth of it
ANOTHER_ENGINE = (
    "the direction holds on the same card, but the figure is another, and so is the engine"
)
WITHIN_NOISE = (
    f"the two sides differ by at most {100 * NOISE:.0f} %, or by less than their repeats do"
)

Records = Mapping[
    str, Run
]  # one hardware's runs by the number of the chapter: {"02": ..., "03": ...}
Pair = tuple[Measured, Measured]  # what is divided, and by what


@dataclass(frozen=True)
class Outcome:
    """What one hardware's records say about a claim: a value with its unit, the verdict, and a caveat.

    note: what would make it comparable, or what the verdict leaves open; empty where there is nothing to add.
    """

    value: str
    verdict: str
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """A published figure or sentence. `judge` returns None where the records lack what it needs.

    kind: "headline", "finding", "failure" or "peer". published: the figure, or a failure's cause; empty where the text has it.
    section: the label of the section that treats it. why: one sentence. count: the outcome of counting, which needs no
    record and is the same on every machine; None for what can only be measured.
    """

    kind: str
    text: str
    published: str
    judge: Callable[[Records, Reference], Outcome | None]
    section: str
    why: str
    count: Callable[[Reference], Outcome] | None = None


def direction(a: Measured, b: Measured) -> int:
    """1 where `a` is larger than `b` beyond the noise, -1 where it is smaller, 0 where they cannot be told apart."""
    return compare(a, b, "", "", what="amount").direction


def figure(
    way: int, ours: float | None, theirs: float, *, card: bool, needs: str
) -> tuple[str, str]:
    """(verdict, note) of a claim that has a figure.

    way: the `direction` of what was measured; 1 is the claim's. ours: the figure at the size that the claim names, None
    where that was not run. card: whether it was measured on the published card. needs: what would make it comparable.
    """
    if way < 0:
        return REFUTED, ""
    if way == 0:
        return INCONCLUSIVE, WITHIN_NOISE
    if ours is None or not card:
        return NOT_COMPARABLE, f"needs {needs}"
    if abs(ours / theirs - 1) <= TOLERANCE:
        return REPRODUCED, ""
    return REFUTED, ANOTHER_ENGINE


def card_name(published: Reference) -> str:
    """The model of the published card: "A100"."""
    return re.search(r"\b[A-Z]+\d+\b", published["setup"]["gpu"]).group()


def on_card(records: Records, published: Reference) -> bool:
    """Whether these records are from the published card."""
    return any(card_name(published) in run.label for run in records.values())


def verdict_of(counted: Outcome | None, measured: Mapping[str, Outcome | None], card: str) -> str:
    """The verdict of a row. A count decides; else the published card does, where it was measured and can be compared.

    Otherwise the machines that could compare decide, and where they disagree the row says that.
    """
    if counted is not None:
        return counted.verdict
    found = {label: outcome.verdict for label, outcome in measured.items() if outcome is not None}
    if not found:
        return UNMEASURED
    decided = {k: v for k, v in found.items() if v not in (NOT_COMPARABLE, INCONCLUSIVE)}
    there = {v for label, v in decided.items() if card in label}
    verdicts = there or set(decided.values()) or set(found.values())
    if len(verdicts) == 1:
        return verdicts.pop()
    return MIXED if decided else NOT_COMPARABLE


def ratio(a: float | None, b: float | None) -> float | None:
    """a / b; None where one is missing or b is zero."""
    return None if a is None or not b else a / b


def quotient(pair: Pair) -> list[float] | None:
    """[lowest, middle, highest] of the first over the second, from the ranges of their repeats.

    One number where neither was repeated; None where one is missing or not above zero.
    """
    a, b = value(pair[0]), value(pair[1])
    if not (a.known and b.known and a.low > 0 and b.low > 0):
        return None
    if max(a.count, b.count) < 2:
        return [a.middle / b.middle]
    return [a.low / b.high, a.middle / b.middle, a.high / b.low]


def middle(measured: Measured) -> float:
    """The middle of repeats that are known."""
    return _known(value(measured)).middle


def _known(found: Value) -> Value:
    if not found.known:
        raise ValueError("nothing was measured")
    return found


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


def gains(series: Series | None, sizes: str, over: str, under: str) -> dict[float, list[float]]:
    """{size: the `quotient` of column `over` and column `under`}, without the rows that have none."""
    if series is None:
        return {}
    pairs = ((cell(series, over, i), cell(series, under, i)) for i in range(len(series[sizes])))
    found = {size: quotient(pair) for size, pair in zip(series[sizes], pairs)}
    return {size: gain for size, gain in found.items() if gain is not None}
