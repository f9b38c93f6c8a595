"""Gates: checks that an experiment ran under conditions in which it can show its effect.

Where a gate fails, the recorded run of the same hardware is drawn and quoted instead, and the page says so.

Introduced in chapter 1.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lib.bench.findings import machine_rates
from lib.bench.findings.values import Measured, percent, value
from lib.bench.measure.machine import hardware
from lib.bench.measure.roofline import Roofline
from lib.bench.measure.system_load import MEAN_SHARE, SHORTEST, LoadMonitor
from lib.bench.paths import measurements_dir
from lib.bench.records.ceilings import with_runs
from lib.bench.records.files import Run, read_records
from lib.bench.records.record import Record
from lib.bench.records.series import Series
from lib.bench.scale import scale
from lib.bench.script_options import options

REPEATS, SPREAD = 2, 0.25  # least repeats, and their range over their median at most
# Cores that other processes may use on a machine of a few cores, on average and at once.
OTHERS_MEAN, OTHERS_MAX = 0.25, 1.0
_LOADED = "while it ran"  # ends every reason that is about other load


@dataclass(frozen=True)
class Shown:
    """The run that a page draws and quotes: `shown["series"]` is its Series, or None where it has none.

    label: its name in a figure's legend. note: what the page says where it is not this run, or where it is one that
    failed its gate and has no recorded run to take its place; empty otherwise. reason: the part of the note that says
    what was wrong with this run.
    """

    run: Record | Run
    label: str = "this run"
    note: str = ""
    reason: str = ""
    # Series that were asked for and are not there.
    absent: set[str] = field(default_factory=set, compare=False)

    def __getitem__(self, name: str) -> Series | None:
        found = self.run.series.get(name) if isinstance(self.run, Record) else self.run[name]
        if found is None:
            self.absent.add(name)
        return found

    def to_draw(self, name: str, this_run: Record) -> tuple[Series, str]:
        """A series and the note for its figure: this run's series where the recorded run has none of that name."""
        if (found := self[name]) is not None:
            return found, self.note
        return this_run[name], f"{self.reason}; the recorded run has no such curve"

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
    load: Mapping[str, float] | None = None  # what other programs used while it ran; see `quiet`
    shown: Shown | None = None  # what `pick` chose
    remark: str = ""  # of an open gate: what differs from the record, and is still this machine

    @property
    def stood_in(self) -> bool:
        """Whether a recorded run took the place of this one, and had all that was asked of it."""
        return self.shown is not None and self.shown.recorded and not self.shown.absent

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
        """Other processes used at most `mean` cores on average and `most` at once, or 5 % of many cores.

        load: {"others_mean": …, "others_max": …, "steal": …, "cores": …}, all in cores and all optional; steal is what
        a hypervisor gave to other machines. `Experiments.gate` has called this with the load since the gate before it;
        a later call replaces what that one said.
        """
        self.reasons = [reason for reason in self.reasons if _LOADED not in reason]
        self.load = {name: x for name, x in (load or {}).items() if x is not None}
        share = MEAN_SHARE * self.load.get("cores", 0)
        facts = (
            ("other programs used {:.1f} cores on average", "others_mean", max(mean, share)),
            ("other programs used up to {:.1f} cores", "others_max", max(most, share)),
            ("the hypervisor gave {:.1f} cores to others on average", "steal", max(mean, share)),
        )
        for text, name, limit in facts:
            found = self.load.get(name, 0)
            if found > limit:
                return self.check(False, f"{text.format(found)} {_LOADED}")
        return True

    def machine(
        self, now: Roofline | None, recorded: Roofline | None, factor: float = machine_rates.FACTOR
    ) -> bool:
        """Bandwidth and arithmetic rates are those of this hardware: see `machine_rates.allowed`.

        recorded: the ceilings of its recorded run, with `runs` where more runs are known.
        """
        if now is None or recorded is None:
            return True
        compared = machine_rates.compare(now, recorded, factor)
        for rate in compared:
            self.check(rate.inside, rate.text)
            self.remark = self.remark or rate.remark
        return all(rate.inside for rate in compared)

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
        """The run to draw and quote: this one where the gate is open, else the recorded one where there is one.

        Where the recorded run's own gate was closed as well, the note says so.
        """
        if self.ok:
            self.shown = Shown(this_run)
        elif recorded is None:
            note = f"{self.note}; no recorded run of this hardware can take its place"
            self.shown = Shown(this_run, note=note, reason=self.note)
        else:
            note = f"{self.note}; the recorded run of {recorded.date} is shown instead"
            if also := closed_in(recorded, self.experiment):
                note += f", which could not show it either: {'; '.join(also)}"
            label = f"recorded run of {recorded.date}"
            self.shown = Shown(recorded, label, note, reason=self.note)
        return self.shown


def closed_in(run: Run, experiment: str) -> list[str]:
    """Why a recorded run could not show an experiment; empty where it could, and for records without gates."""
    return next((g["reasons"] for g in run.gates if g["experiment"] == experiment), [])


class Experiments:
    """The gates of one chapter, and the recorded run that stands in where one of them fails.

    At smoke scale every gate is closed: those sizes test the code and show nothing. Without a recorded run of this
    hardware a closed gate leaves this run on the page, with its note.

    A gate gets the load that other programs made since the gate before it, or since this object was made: create it
    before the first measurement, and each gate right after its own. On a GPU the load is noted and closes nothing:
    the times are the device's, and a container's host has cores that this process cannot use.
    """

    def __init__(
        self,
        chapter: str,
        device: torch.device | str | None = None,
        folder: Path | str | None = None,
    ):
        described = hardware(device)
        slug, self._on_cpu = described["slug"], described["kind"] == "cpu"
        runs = [run for run in read_records(chapter, folder=folder) if run.slug == slug]
        # A run that is being recorded shows itself: an older record must not take its place.
        recording = options().record is not None
        self.recorded: Run | None = runs[0] if runs and not recording else None
        self._records = (measurements_dir() if folder is None else Path(folder)) / slug
        self.gates: list[Gate] = []
        self._monitor = LoadMonitor(interval=None).start()
        self._load: dict[str, float] = {}

    @property
    def roofline(self) -> Roofline | None:
        """The ceilings of the recorded run, with those of all known runs of this machine, for `Gate.machine`."""
        if self.recorded is None or self.recorded.roofline is None:
            return None
        return with_runs(self.recorded.roofline, self._records, torch.get_num_threads())

    def gate(self, experiment: str) -> Gate:
        """A new gate; `experiment` names it on the page, e.g. "time by prompt length"."""
        gate = Gate(experiment)
        gate.decided = not gate.check(scale() != "smoke", "it is a test run at the smallest sizes")
        load = self._load_until_now()
        if self._on_cpu:
            gate.quiet(load)
        gate.load = load
        self.gates.append(gate)
        return gate

    def _load_until_now(self) -> dict[str, float]:
        """What others used since the last gate, in cores. Gates that follow each other at once share one load."""
        load = self._monitor.stop()
        self._monitor = LoadMonitor(interval=None).start()
        if load is not None and load.seconds >= SHORTEST:
            self._load = {
                "others_mean": load.others_mean * load.cores,
                "steal": load.steal * load.cores,
                "cores": load.cores,
                "seconds": load.seconds,
            }
        return self._load

    def pick(self, gate: Gate, this_run: Record | Run) -> Shown:
        """See `Gate.pick`. A record that is picked from keeps all gates of this chapter."""
        if isinstance(this_run, Record):
            this_run.gates = self.to_json
        return gate.pick(this_run, self.recorded)

    def pick_for_all(self, gates: Iterable[Gate], this_run: Record | Run) -> Shown:
        """One run for sentences that need several experiments: this one where all of their gates are open."""
        gates = list(gates)
        both = Gate("", list(dict.fromkeys(r for gate in gates for r in gate.reasons)))
        shown = self.pick(both, this_run)
        for gate in gates:
            if not gate.ok and gate.shown is None:
                gate.shown = shown
        return shown

    def summary(self) -> str:
        """For the head of the page: which experiments this copy could not show, and what stands in their place."""
        closed = [gate for gate in self.gates if not gate.ok]
        remark = next((gate.remark for gate in self.gates if gate.ok and gate.remark), "")
        if remark:
            remark = f" {remark[:1].upper()}{remark[1:]}: compare its ratios with the record's, and not its times."
        if not closed:
            return (
                "All experiments on this page ran under conditions that allow their conclusions."
                + remark
            )
        grouped: dict[str, list[str]] = {}
        for gate in closed:
            grouped.setdefault("; ".join(gate.reasons), []).append(gate.experiment)
        said = "; ".join(f"{_listed(names)} ({reasons})" for reasons, names in grouped.items())
        count = len(closed)
        return f"This copy could not show {count} of its {len(self.gates)} experiments: {said}. {self._instead(closed)}{remark}"

    def _instead(self, closed: list[Gate]) -> str:
        """What stands in the place of the experiments that could not be shown."""
        if self.recorded is None:
            return "There is no recorded run of this hardware; read their numbers with care."
        run = f"the recorded run of {self.recorded.date} on the same hardware"
        there = [gate.experiment for gate in closed if gate.stood_in]
        missing = [gate.experiment for gate in closed if not gate.stood_in]
        if not missing:
            return f"Their figures and sentences come from {run}."
        if not there:
            return f"Nothing of {run} takes their place; read their numbers with care."
        return (
            f"The figures and sentences of {_listed(there)} come from {run}. It does not have all that takes the place of "
            f"{_listed(missing)}; read the numbers there with care."
        )

    def to_json(self) -> list[dict[str, Any]]:
        """The gates as plain data, for a record."""
        return [
            {
                "experiment": gate.experiment,
                "ok": gate.ok,
                "reasons": gate.reasons,
                "load": dict(gate.load or {}),
            }
            for gate in self.gates
        ]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
