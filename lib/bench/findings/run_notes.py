"""What a page says of the run that its sentences quote, apart from what was measured.

Introduced in chapter 1.
"""

from pathlib import Path
from typing import Any

from lib.bench.findings.vocabulary import uncapital
from lib.bench.records.files import read_records


def is_recorded(run: Any) -> bool:
    """Whether a page quotes a recorded run in the place of its own: a `Shown` of one."""
    return bool(getattr(run, "recorded", False))


def of_record(run: Any, sentence: str, under_table: bool = False) -> str:
    """The sentence; "In the recorded run, …" where what stands beside it on the page is of this copy's run.

    under_table: it is the first below a table of this copy's run, and says that too.
    """
    if not is_recorded(run):
        return sentence
    if sentence.startswith("This run "):
        return f"The recorded run {sentence.removeprefix('This run ')}"
    sentence = sentence.replace("this run", "that run")
    whose = " (the table above has this copy's)" if under_table else ""
    return f"In the recorded run{whose}, {uncapital(sentence)}"


def card_time(chapter: str, estimate: str, folder: Path | str | None = None) -> str:
    """How long a chapter takes on a laptop, for its card: the latest recorded run on a CPU, else the estimate.

    chapter: its number, e.g. "07". folder: other measurements than the book's, for tests.
    """
    runs = read_records(chapter, folder=folder)
    on_cpu = [run for run in runs if run.fingerprint["hardware"]["kind"] == "cpu"]
    if not on_cpu:
        return f"{estimate}, by estimate"
    run = max(on_cpu, key=lambda run: run.fingerprint["date"])
    label = run.label.removesuffix(f", {run.dtype}")
    return f"{round(run.seconds)} s in the recorded run ({label})"
