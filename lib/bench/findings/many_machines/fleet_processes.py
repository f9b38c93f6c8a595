"""The sentences of chapter 13 on two engine processes: threads against processes, one model in two, one killed.

Introduced in chapter 13.
"""

from collections.abc import Mapping
from typing import Any

from lib.bench.findings.many_machines.fleet_rows import number_of
from lib.bench.findings.values import cell_of, number, quantity, times, value
from lib.bench.findings.vocabulary import compare, missing, size_of

ONE, THREADS, PROCESSES = (
    "one process, one thread",
    "one process, two threads",
    "two processes, one thread each",
)


def setups(run: Any) -> dict[str, str]:
    """Threads against processes: the sentence under the first table."""
    series = run["threads_or_processes"]
    if None in [number_of(series, name, "seconds") for name in (ONE, THREADS, PROCESSES)]:
        return {"setups_finding": missing("the time of threads and of processes").sentence}
    one, threads, processes = (cell_of(series, name, "seconds") for name in (ONE, THREADS, PROCESSES))  # fmt: skip
    said = [
        compare(threads, one, "the job with two threads", "that with one thread"),
        compare(processes, one, "the job with two processes", "that with one process"),
        compare(processes, threads, "the job with two processes", "that with two threads"),
    ]
    text = " ".join(finding.sentence for finding in said)
    return {"setups_finding": f"{_job(series.params or {})}{text}"}


def _job(params: Mapping[str, Any]) -> str:
    """ "8 requests of 48 tokens, 12 new tokens each. "; empty where the run does not say."""
    requests, prompt, answer = (params.get(name) for name in ("requests", "prompt", "answer"))
    if not (requests and prompt and answer):
        return ""
    return f"{number(requests)} requests of {number(prompt)} tokens, {number(answer)} new tokens each. "


def one_model(run: Any) -> dict[str, str]:
    """A step of one model in two processes, against its least time and against one process."""
    series = run["one_model_in_two"]
    names = ("step of two, predicted", "step of two", "step of one process")
    least, both, alone = (number_of(series, name, "seconds") for name in names)
    said = missing("a step of one model in two processes").sentence
    rest = "The formula leaves out the work that each process does in full, such as the norms."
    if None not in (least, both, alone):
        found = compare(
            cell_of(series, names[1], "seconds"), cell_of(series, names[2], "seconds"),
            "a step of two processes", "that of one process with one thread",
        )  # fmt: skip
        said = (
            f"A step of one sequence should take {quantity(least, 's')} at least, and takes {quantity(both, 's')}: "
            f"{times(both / least)} the least time. {found.sentence}"
        )
        size = size_of(both / least)
        if size != "about" and both < least:
            rest = (
                "The step took less than the least time, so that an all-reduce or the step of one process was "
                "measured as too slow."
            )
        elif size not in ("about", "little"):
            rest += (
                " It also takes the latency of an all-reduce from a loop of nothing but all-reduces; between "
                "products, one process can have to wait for the other. How much of the difference each of them "
                "explains was not measured."
            )
    params = (series.params or {}) if series is not None else {}
    same, of = params.get("same_tokens"), params.get("tokens")
    tokens = missing("whether the tokens are the same").sentence
    if same is not None and of:
        tokens = f"Of {number(of)} tokens, {number(same)} are those of one process."
    return {"one_model_finding": said, "one_model_tokens": tokens, "one_model_rest": rest}


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
    stayed, moved, failed = (number(count) if count else "none" for count in found)
    return {
        "killed_finding": f"Of the requests, {stayed} completed at the first try, {moved} at the other replica, and "
        f"{failed} failed after the first token."
    }
