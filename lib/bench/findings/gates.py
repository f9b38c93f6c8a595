"""Gates: before an experiment speaks, it checks that it could show what it wants to show.

Where a gate fails, the recorded run of the same hardware is drawn and quoted instead, and the page says so.

Introduced in chapter 1.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lib.bench.findings.values import Measured, percent, quantity, times, value
from lib.bench.measure.machine import hardware
from lib.bench.measure.roofline import Roofline
from lib.bench.records.files import Run, read_records
from lib.bench.records.record import Record
from lib.bench.records.series import Series
from lib.bench.scale import scale
from lib.bench.script_options import options

REPEATS, SPREAD = 2, 0.25  # least repeats, and their range over their median at most
OTHERS_MEAN, OTHERS_MAX = 0.25, 1.0  # cores that other processes may use
MACHINE = 1.25  # factor between this run's ceilings and the record's


@dataclass(frozen=True)
class Shown:
    """The run that a page draws and quotes: `shown["series"]` is its Series, or None where it has none.

    label: its name in a figure's legend. note: what the page says where it is not this run, or where it is one that
    failed its gate and has no recorded run to take its place; empty otherwise.
    """

    run: Record | Run
    label: str = "this run"
    note: str = ""

    def __getitem__(self, name: str) -> Series | None:
        return self.run.series.get(name) if isinstance(self.run, Record) else self.run[name]

    @property
    def recorded(self) -> bool:
        return isinstance(self.run, Run)

    @property
    def roofline(self) -> Roofline | None:
        return self.run.roofline


@dataclass
class Gate:
    """Named checks of one experiment. `ok` when none failed; `reasons` has one clause for each that did.

    Every check returns whether it passed, and skips what is None: a fact that is not known closes no gate.
    """

    experiment: str
    reasons: list[str] = field(default_factory=list)
    decided: bool = False  # closed for one reason, to which the others add nothing

    @property
    def ok(self) -> bool:
        return not self.reasons

    @property
    def note(self) -> str:
        """The words under a figure: "this run cannot show it: …"; empty where the gate is open."""
        return "" if self.ok else f"this run cannot show it: {'; '.join(self.reasons)}"

    def check(self, passed: bool, reason: str) -> bool:
        """Any check of the chapter's own; `reason` says what is wrong where it did not pass."""
        if not passed and not self.decided and reason not in self.reasons:
            self.reasons.append(reason)
        return passed

    def repeats(
        self,
        timings: Iterable[Measured],
        what: str = "",
        spread: float = SPREAD,
        least: int = REPEATS,
    ) -> bool:
        """Each measurement has `least` repeats, and their range is at most `spread` of their median."""
        found = [v for v in map(value, timings) if v.known]
        of = f" of {what}" if what else ""
        few = [v for v in found if v.count < least]
        wide = max((v.spread for v in found if v.spread is not None), default=0.0)
        enough = self.check(not few, f"fewer than {least} repeats{of}")
        text = f"the repeats{of} differ by {percent(wide)}, more than {percent(spread)}"
        return self.check(wide <= spread, text) and enough

    def quiet(
        self,
        load: Mapping[str, float | None] | None,
        mean: float = OTHERS_MEAN,
        most: float = OTHERS_MAX,
    ) -> bool:
        """Other processes used at most `mean` cores on average and `most` at once: {"others_mean": …, "others_max": …}."""
        load = load or {}
        average, peak = load.get("others_mean"), load.get("others_max")
        if average is not None and average > mean:
            text = f"other programs used {average:.1f} cores on average while it ran"
            return self.check(False, text)
        if peak is not None and peak > most:
            return self.check(False, f"other programs used up to {peak:.1f} cores while it ran")
        return True

    def machine(
        self, now: Roofline | None, recorded: Roofline | None, factor: float = MACHINE
    ) -> bool:
        """Bandwidth and arithmetic rates are within `factor` of those of this hardware's recorded run."""
        if now is None or recorded is None:
            return True
        pairs = [("memory bandwidth", "B/s", now.bandwidth, recorded.bandwidth)]
        pairs += [
            (f"{name} products", "FLOP/s", rate, recorded.flops[name])
            for name, rate in now.flops.items()
            if name in recorded.flops
        ]
        passed = True
        for name, unit, here, there in pairs:
            ratio = here / there
            text = f"{name} at {quantity(here, unit)} are {times(ratio)} this machine's record"
            text = text.replace(" are ", " is ") if name == "memory bandwidth" else text
            passed &= self.check(1 / factor <= ratio <= factor, text)
        return passed

    def queue_formed(self, most_waiting: float | None, least: float = 1) -> bool:
        """At least `least` requests waited at once: without a queue, nothing about queues can be shown."""
        if most_waiting is None:
            return True
        text = f"no queue formed (at most {most_waiting:g} waited, needed {least:g})"
        return self.check(most_waiting >= least, text)

    def limit_reached(self, most: float | None, limit: float, what: str) -> bool:
        """A limit was reached: `most` of `what` in use, out of `limit`."""
        if most is None:
            return True
        return self.check(
            most >= limit, f"the limit was not reached ({most:g} of {limit:g} {what})"
        )

    def enough(self, count: float | None, least: float, what: str = "requests") -> bool:
        """At least `least` of `what` were measured."""
        if count is None:
            return True
        return self.check(count >= least, f"too few {what} ({count:g}, needed {least:g})")

    def pick(self, this_run: Record | Run, recorded: Run | None) -> Shown:
        """The run to draw and quote: this one where the gate is open, else the recorded one where there is one."""
        if self.ok:
            return Shown(this_run)
        if recorded is None:
            return Shown(
                this_run, note=f"{self.note}; no recorded run of this hardware can take its place"
            )
        return Shown(
            recorded,
            f"recorded run of {recorded.date}",
            f"{self.note}; the recorded run of {recorded.date} is shown instead",
        )


class Experiments:
    """The gates of one chapter, and the recorded run that stands in where one of them fails.

    At smoke scale every gate is closed: those sizes test the code and show nothing. Without a recorded run of this
    hardware a closed gate leaves this run on the page, with its note.
    """

    def __init__(
        self,
        chapter: str,
        device: torch.device | str | None = None,
        folder: Path | str | None = None,
    ):
        slug = hardware(device)["slug"]
        runs = [run for run in read_records(chapter, folder=folder) if run.slug == slug]
        # A run that is being recorded shows itself: an older record must not take its place.
        recording = options().record is not None
        self.recorded: Run | None = runs[0] if runs and not recording else None
        self.gates: list[Gate] = []

    @property
    def roofline(self) -> Roofline | None:
        """The ceilings of the recorded run, for `Gate.machine`."""
        return None if self.recorded is None else self.recorded.roofline

    def gate(self, experiment: str) -> Gate:
        """A new gate; `experiment` names it on the page, e.g. "time by prompt length"."""
        gate = Gate(experiment)
        gate.decided = not gate.check(scale() != "smoke", "it is a test run at the smallest sizes")
        self.gates.append(gate)
        return gate

    def pick(self, gate: Gate, this_run: Record | Run) -> Shown:
        return gate.pick(this_run, self.recorded)

    def summary(self) -> str:
        """For the head of the page: which experiments this copy could not show, and what stands in their place."""
        closed = [gate for gate in self.gates if not gate.ok]
        if not closed:
            return "All experiments on this page ran under conditions in which they can show what they claim to show."
        if self.recorded is None:
            instead = "There is no recorded run of this hardware; read their numbers with care."
        else:
            instead = f"Their figures and sentences come from the recorded run of {self.recorded.date} on the same hardware."
        grouped: dict[str, list[str]] = {}
        for gate in closed:
            grouped.setdefault("; ".join(gate.reasons), []).append(gate.experiment)
        said = "; ".join(f"{_listed(names)} ({reasons})" for reasons, names in grouped.items())
        count = len(closed)
        return f"This copy could not show {count} of its {len(self.gates)} experiments: {said}. {instead}"

    def to_json(self) -> list[dict[str, Any]]:
        """The gates as plain data, for a record."""
        return [
            {"experiment": gate.experiment, "ok": gate.ok, "reasons": gate.reasons}
            for gate in self.gates
        ]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
