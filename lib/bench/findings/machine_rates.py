"""Whether a run's ceilings are those of the recorded machine, whose own ceilings vary from run to run.

Introduced in chapter 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lib.bench.findings.values import quantity, times
from lib.bench.findings.vocabulary import ABOUT
from lib.bench.measure.roofline import Roofline

# Rates count as the recorded machine's within FACTOR of the record, and within 10 % of the range of all of its known
# runs, which is wider on a virtual machine. Beyond WIDEST of the record they never do.
FACTOR, WIDEST = 1.25, 2.0


@dataclass(frozen=True)
class Rate:
    """One ceiling beside the record's. text: how they compare. remark: the same where they differ and are allowed to."""

    inside: bool
    text: str
    remark: str = ""


def allowed(recorded: float, runs: Sequence[float], factor: float = FACTOR) -> tuple[float, float]:
    """(lowest, highest) rate that counts as the recorded machine's.

    At least within `factor` of the record. Where more runs are known, also from 10 % below the slowest to 10 % above the
    fastest, but never beyond WIDEST of the record: beside a machine that varies by more, recorded times show nothing.
    """
    known = [recorded, *runs]
    low = min(min(known) / (1 + ABOUT), recorded / factor)
    high = max(max(known) * (1 + ABOUT), recorded * factor)
    return max(low, recorded / WIDEST), min(high, recorded * WIDEST)


def compare(now: Roofline, recorded: Roofline, factor: float = FACTOR) -> list[Rate]:
    """Memory bandwidth, and the products of each dtype that both measured; `recorded.runs` has the known runs."""
    found = [
        _rate("memory bandwidth", "is", "B/s", now.bandwidth, recorded.bandwidth,
              recorded.runs.get("bandwidth", []), factor)
    ]  # fmt: skip
    for name, here in now.flops.items():
        if name in recorded.flops:
            runs = recorded.runs.get(name, [])
            found.append(
                _rate(f"{name} products", "are", "FLOP/s", here, recorded.flops[name], runs, factor)
            )
    return found


def _rate(
    name: str, verb: str, unit: str, here: float, there: float, runs: Sequence[float], factor: float
) -> Rate:
    low, high = allowed(there, runs, factor)
    inside = low <= here <= high
    text = f"{name} at {quantity(here, unit)} {verb} {times(here / there)} this machine's record"
    if len(runs) < 2:
        return Rate(inside, text)
    known = f"the range of its {len(runs)} runs, {quantity(min(runs), unit)} to {quantity(max(runs), unit)}"
    if not inside:
        within = min(runs) <= here <= max(runs)
        beyond = f"a record allows {quantity(low, unit)} to {quantity(high, unit)}"
        return Rate(False, f"{text}: {beyond}" if within else f"{text}, outside of {known}")
    differs = not 1 / factor <= here / there <= factor
    return Rate(True, text, f"{text}, within {known}" if differs else "")
