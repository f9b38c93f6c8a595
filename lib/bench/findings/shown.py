"""The run that a page draws and quotes: this one, or the recorded one of the same hardware.

Introduced in chapter 1.
"""

from dataclasses import dataclass, field

from lib.bench.measure.roofline import Roofline
from lib.bench.records.files import Run
from lib.bench.records.record import Record
from lib.bench.records.series import Series


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
    instead_of: Record | Run | None = None  # the run whose place this one takes
    # Whether it had each series that it was asked for.
    asked: dict[str, bool] = field(default_factory=dict, compare=False)

    def __getitem__(self, name: str) -> Series | None:
        found = _series(self.run, name)
        self.asked[name] = found is not None
        return found

    @property
    def absent(self) -> bool:
        """Whether the run whose place it takes has a series that was asked for, and it has not."""
        if self.instead_of is None:
            return False
        missed = (name for name, had in self.asked.items() if not had)
        return any(_series(self.instead_of, name) is not None for name in missed)

    @property
    def has_nothing(self) -> bool:
        """Whether neither it nor the run whose place it takes has any of the series that were asked for."""
        return bool(self.asked) and not any(self.asked.values()) and not self.absent

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


def _series(run: Record | Run, name: str) -> Series | None:
    return run.series.get(name) if isinstance(run, Record) else run[name]
