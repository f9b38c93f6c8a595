"""What a page says of the run that its sentences quote, apart from what was measured.

Introduced in chapter 7.
"""

from typing import Any

from lib.bench.records.files import Run


def is_recorded(run: Any) -> bool:
    """Whether a page quotes a recorded run in the place of its own: a `Shown` of one."""
    return bool(getattr(run, "recorded", False))


def of_record(run: Any, sentence: str) -> str:
    """The sentence; "In the recorded run, …" where what stands beside it on the page is of this copy's run."""
    if not is_recorded(run):
        return sentence
    return f"In the recorded run, {sentence[:1].lower()}{sentence[1:]}"


def time_taken(run: Run | None, estimate: str) -> str:
    """How long the recorded run of this hardware took, for the card of a chapter; the estimate where there is none."""
    if run is None:
        return f"{estimate}, by estimate"
    return f"{round(run.seconds)} s in the recorded run ({run.label}); longer beside other programs"
