"""The gates of one chapter, and the recorded run that stands in where one of them fails.

Introduced in chapter 1.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from lib.bench.findings.gates import Gate
from lib.bench.findings.shown import Shown
from lib.bench.findings.values import listed
from lib.bench.findings.vocabulary import capital
from lib.bench.measure.machine import hardware
from lib.bench.measure.roofline import Roofline
from lib.bench.measure.system_load import SHORTEST, LoadMonitor
from lib.bench.paths import measurements_dir
from lib.bench.records.ceilings import with_runs
from lib.bench.records.files import Run, read_records
from lib.bench.records.record import Record
from lib.bench.scale import scale
from lib.bench.script_options import options


class Experiments:
    """The gates of one chapter, and the recorded run that stands in where one of them fails.

    At smoke scale every gate is closed: those sizes test the code and show nothing. Without a recorded run of this
    hardware a closed gate leaves this run on the page, with its note.

    A gate gets the load that other programs made since the gate before it, or since this object was made: create it
    before the first measurement, and each gate right after its own. On a GPU the load is noted and closes nothing:
    the times are the device's, and a container's host has cores that this process cannot use.

    own_tables: the chapter's tables show what was measured just now, whatever the figures show; the page says so.
    """

    def __init__(
        self,
        chapter: str,
        device: torch.device | str | None = None,
        folder: Path | str | None = None,
        own_tables: bool = False,
    ):
        self._own_tables = own_tables
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
            return f"No experiment on this page was stopped by its conditions.{remark}"
        count = f"This copy could not show {len(closed)} of its {len(self.gates)} experiments"
        return f"{count}{_why(closed)}. {self._instead(closed)}{remark}"

    def _instead(self, closed: list[Gate]) -> str:
        """What stands in the place of the experiments that could not be shown."""
        if self.recorded is None:
            return "There is no recorded run of this hardware; read their numbers with care."
        run = f"the recorded run of {self.recorded.date} on the same hardware"
        nowhere = [g.experiment for g in closed if g.shown is not None and g.shown.has_nothing]
        there = [gate.experiment for gate in closed if gate.stood_in]
        lacking = [g.experiment for g in closed if g.experiment not in (*there, *nowhere)]
        tables = ". The tables of the measurements show this copy's run" if self._own_tables else ""
        alone = len(closed) == 1
        its, it_was = ("its", "it was") if alone else ("their", "they were")
        said = []
        if there:
            of = "" if len(there) == len(closed) else f" of {listed(there)}"
            whose = "the" if of else its
            said.append(f"{capital(whose)} figures and sentences{of} come from {run}{tables}.")
        if lacking and there:
            said.append(
                f"For {listed(lacking)}, that run lacks measurements that the page needs; read the numbers there with care."
            )
        elif lacking:
            said.append(f"Nothing in {run} can take {its} place; read {its} numbers with care.")
        if len(nowhere) == len(closed):
            said.append(f"{capital(it_was)} not measured in {run} either.")
        elif nowhere:
            was = "was" if len(nowhere) == 1 else "were"
            said.append(f"{capital(listed(nowhere))} {was} measured in neither.")
        return " ".join(said)

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


def _why(closed: list[Gate]) -> str:
    """The closed gates' reasons: what several have in common stands once, before what only some of them have."""
    shared = [r for r in closed[0].reasons if all(r in gate.reasons for gate in closed)]
    if len(closed) == 1:
        shared = []
    grouped: dict[str, list[str]] = {}
    for gate in closed:
        if own := "; ".join(reason for reason in gate.reasons if reason not in shared):
            grouped.setdefault(own, []).append(gate.experiment)
    said = "; ".join(f"{listed(names)} ({reasons})" for reasons, names in grouped.items())
    said = min(said, _by_reason(closed, shared), key=len)
    if not shared:
        return f": {said}"
    names = listed([gate.experiment for gate in closed])
    return f": {names}, because {'; '.join(shared)}" + (f". Besides: {said}" if said else "")


def _by_reason(closed: list[Gate], shared: list[str]) -> str:
    """The same the other way round, which is shorter where many experiments have the same long reasons."""
    names: dict[str, list[str]] = {}
    for gate in closed:
        for reason in gate.reasons:
            if reason not in shared:
                names.setdefault(reason, []).append(gate.experiment)
    return "; ".join(f"{reason} ({listed(of)})" for reason, of in names.items())
