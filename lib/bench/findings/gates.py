"""Gates: checks that an experiment ran under conditions in which it can show its effect.

Where a gate fails, the recorded run of the same hardware is drawn and quoted instead, and the page says so.

Introduced in chapter 1.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lib.bench.findings import machine_rates
from lib.bench.findings.run_notes import is_recorded
from lib.bench.findings.shown import Shown
from lib.bench.findings.values import Measured, percent, percent_above, value
from lib.bench.measure.roofline import Roofline
from lib.bench.measure.system_load import MEAN_SHARE
from lib.bench.records.files import Run
from lib.bench.records.record import Record

REPEATS, SPREAD = 2, 0.25  # least repeats, and their spread over their median at most
# Cores that other processes may use on a machine of a few cores, on average and at once.
OTHERS_MEAN, OTHERS_MAX = 0.25, 1.0
_LOADED = "while it ran"  # ends every reason that is about other load


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
        """Whether a recorded run took the place of this one, and had all that was asked of it and was measured."""
        shown = self.shown
        return bool(shown and shown.recorded and not shown.absent and not shown.has_nothing)

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
        """Each measurement has `least` repeats that agree: their spread is at most `spread` of their median.

        The spread is the middle half of five repeats or more, the range of fewer: a page quotes medians, and a single
        slow repeat moves the median of five by little, and the range by as much as it was slow.
        """
        found = [v for v in map(value, timings) if v.known]
        of = f" of {what}" if what else ""
        few = [v for v in found if v.count < least]
        halves = [v.half_spread for v in found if v.half_spread is not None]
        ranges = [v.spread for v in found if v.half_spread is None and v.spread is not None]
        enough = self.check(not few, f"fewer than {least} repeats{of}")
        checked = [enough]
        for widths, subject in (
            (ranges, f"the repeats{of} differ"),
            (halves, f"the middle half of the repeats{of} differs"),
        ):
            wide = max(widths, default=0.0)
            text = f"{subject} by {percent_above(wide, spread)}, more than {percent(spread)}"
            checked.append(self.check(wide <= spread, text))
        return all(checked)

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
            self.shown = Shown(recorded, label, note, reason=self.note, instead_of=this_run)
        return self.shown


def stand_in_closed(shown: Shown | Run, experiment: str) -> list[str]:
    """Why the recorded run on a page could not show an experiment either; empty for this copy's run."""
    return closed_in(shown.run, experiment) if is_recorded(shown) else []


def closed_in(run: Run, experiment: str) -> list[str]:
    """Why a recorded run could not show an experiment; empty where it could, and for records without gates."""
    return next((g["reasons"] for g in run.gates if g["experiment"] == experiment), [])
