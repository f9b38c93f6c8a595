"""The sentences of chapter 13 on two engine processes: threads against processes, one model in two, one killed.

Introduced in chapter 13.
"""

from typing import Any

from lib.bench.findings.many_machines.fleet_rows import number_of
from lib.bench.findings.values import cell_of, number, quantity, times, value
from lib.bench.findings.vocabulary import compare, missing

ONE, THREADS, PROCESSES = (
    "one process, one thread",
    "one process, two threads",
    "two processes, one thread each",
)


def setups(run: Any) -> dict[str, str]:
    """Threads against processes: the sentence under the first table."""
    series = run["threads_or_processes"]
    one, threads, processes = (number_of(series, name, "seconds") for name in (ONE, THREADS, PROCESSES))  # fmt: skip
    if None in (one, threads, processes):
        return {"setups_finding": missing("the time of threads and of processes").sentence}
    gain = (
        f"With a second thread the job is {times(one / threads)} as fast as with one, "
        f"and with a second process {times(one / processes)}."
    )
    found = compare(
        cell_of(series, PROCESSES, "seconds"), cell_of(series, THREADS, "seconds"),
        "the job with two processes", "that with two threads",
    )  # fmt: skip
    return {"setups_finding": f"{gain} {found.sentence}"}


def one_model(run: Any) -> dict[str, str]:
    """A step of one model in two processes, against its least time and against one process."""
    series = run["one_model_in_two"]
    names = ("step of two, predicted", "step of two", "step of one process")
    least, both, alone = (number_of(series, name, "seconds") for name in names)
    said = missing("a step of one model in two processes").sentence
    if None not in (least, both, alone):
        faster = f"{times(alone / both)} as fast as the step of one process with one thread"
        said = (
            f"A step of one sequence should take {quantity(least, 's')} at least, and takes {quantity(both, 's')}: "
            f"{times(both / least)} the least time. It is {faster}."
        )
    params = (series.params or {}) if series is not None else {}
    same, of = params.get("same_tokens"), params.get("tokens")
    tokens = missing("whether the tokens are the same").sentence
    if same is not None and of:
        tokens = f"Of {number(of)} tokens, {number(same)} are those of one process."
    return {"one_model_finding": said, "one_model_tokens": tokens}


def killed(run: Any) -> dict[str, str]:
    """What became of the requests when one of two replicas was killed."""
    series = run["killed"]
    names = (
        "completed at the first try",
        "completed at the other replica",
        "failed after the first token",
    )
    found = [value(cell_of(series, name, "count")).middle for name in names]
    if None in found or min(found) < 0:
        return {"killed_finding": missing("what a killed replica costs").sentence}
    stayed, moved, failed = (f"{number(count)}" for count in found)
    return {
        "killed_finding": f"Of the requests, {stayed} complete where they were first sent, {moved} complete at the "
        f"other replica, and {failed} fail, because their first token had been sent."
    }
