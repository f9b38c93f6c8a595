"""The sentences of chapter 3 about static and continuous batching, with the same slots.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None
where it has none.

Introduced in chapter 3.
"""

from typing import Any

from lib.bench.findings.batching.batching_rows import CHAT, EQUAL, VARIABLE, over, row
from lib.bench.findings.values import cell, number, percent, quantity, times, value
from lib.bench.findings.vocabulary import Finding, compare, missing, share, size_of
from lib.bench.records.series import Series

RATE = "tokens/s"
STATIC, CONTINUOUS = "static batching", "continuous batching"


def promise(promised: float | None, got: float | None) -> str:
    """A gain against the one that the count of steps promises, which is the most that is expected."""
    if promised is None or got is None:
        return missing("the gain against the count of steps").sentence
    if got > 1.1 * promised:
        return (
            f"That is {times(got)}, more than the {times(promised)} that the steps predict: a "
            f"step of one of the two was "
            "faster, or the machine changed between them."
        )
    if got >= promised / 1.1:
        return f"The steps predict {times(promised)}, and {times(got)} is about as much."
    if got <= 1:
        return f"The steps predict {times(promised)}; the throughput gained nothing ({times(got)})."
    return f"The steps predict at most {times(promised)}, and {times(got)} is less, as predicted."


def promised_by_steps(static: int, continuous: int) -> dict[str, str]:
    """What the steps of the two schedulers, counted for the same answers, predict."""
    if static <= continuous:
        said = (
            "With as many steps under both there is nothing to gain, and we predict the same time."
        )
    else:
        said = (
            "If a step took the same time for any number of sequences, continuous batching would be "
            f"{static / continuous:.2f} times as fast. We predict at most that, because a step with eight sequences should "
            "take longer than a step with one left over."
        )
    return {"chat_promise_finding": said}


def _schedulers(series: Series | None, static: int, continuous: int) -> tuple[str, str]:
    """(the comparison of throughput, with the promise of the steps; the reason, where the steps show it)."""
    found = compare(cell(series, "tok_s", continuous), cell(series, "tok_s", static), CONTINUOUS, STATIC,
                    what="throughput", unit=RATE)  # fmt: skip
    if found.kind in ("missing", "undefined"):
        return missing("the throughput of the two schedulers").sentence, ""
    promised, got = over(series, "steps", static, continuous), found.ratio
    if found.kind == "cannot tell":
        return found.sentence, ""
    return f"{found.sentence} {promise(promised, got)}", fuller(series, static, continuous)


def fuller(series: Series | None, static: int, continuous: int) -> str:
    """Why the gain is less than the steps promise: fuller steps that take longer; empty where that is not measured."""
    found = []
    for i in (static, continuous):
        steps, seconds, places, idle = (
            value(cell(series, name, i)).middle
            for name in ("steps", "seconds", "slot_steps", "idle_slot_steps")
        )
        if None in (steps, seconds, places, idle) or steps <= 0 or seconds <= 0 or places < idle:
            return ""
        found.append((seconds / steps, (places - idle) / steps))
    (before, few), (after, many) = found
    if after > 1.05 * before and many > few:
        return (
            f" A step held {many:.1f} sequences on average in place of {few:.1f}, and took "
            f"{quantity(after, 's')} in place of {quantity(before, 's')}."
        )
    return ""


def chat(run: Any) -> dict[str, str]:
    """Under the timeline of the chat."""
    series = run[CHAT]
    said, why = _schedulers(series, 0, 1)
    static, continuous = (cell(series, "ttft_mean_s", i) for i in (0, 1))
    found = compare(continuous, static, "one", "the other")
    if found.kind in ("missing", "undefined"):
        first = missing("the mean TTFT").sentence
    else:
        both = f"{quantity(value(continuous).middle, 's')} under continuous batching and {quantity(value(static).middle, 's')} under static"
        first = f"The mean TTFT was {both}"
        first += (
            ": a request in the second batch of a static engine waits for the slowest of the first."
            if found.direction < 0
            else ", so this run shows no shorter wait."
        )
    return {"chat_finding": said + why, "chat_ttft_finding": first, "idle_finding": _idle(series)}


def _idle(series: Series | None) -> str:
    parts = [
        share(cell(series, "idle_slot_steps", i), cell(series, "slot_steps", i)) for i in (0, 1)
    ]
    if any(part.ratio is None or part.ratio > 1 for part in parts):
        return missing("the share of idle slots").sentence
    static, continuous = (percent(part.ratio) for part in parts)
    return f"Under static batching {static} of the slot-steps computed nothing, under continuous batching {continuous}."


def variable(run: Any) -> dict[str, str]:
    """Under the figure of the workload with variable lengths."""
    series = run[VARIABLE]
    static, narrow, wide = (
        row(series, "static"),
        row(series, "continuous"),
        row(series, "continuous", ""),
    )
    generate, manager = (
        row(series, "transformers generate,"),
        row(series, "transformers generate_batch"),
    )
    said, why = _schedulers(series, static, narrow)

    def rates(a: int, b: int, a_name: str, b_name: str) -> Finding:
        pair = (cell(series, "tok_s", i) for i in (a, b))
        return compare(*pair, a_name, b_name, what="throughput", unit=RATE)

    slots = (
        f"the engine with {series.params['slots']} slots" if series else "the engine with few slots"
    )
    roomy = rates(wide, narrow, "the engine with a slot for every request", slots)
    step = rates(static, generate, "our static scheduler", "transformers generate")
    best = rates(
        wide, generate, "the engine with a slot for every request", "transformers generate"
    )
    managed = "transformers' continuous batching"
    other = rates(wide, manager, "the engine with a slot for every request", managed)
    near = rates(narrow, manager, slots, managed)
    peers = [f.sentence for f in (best, other, near) if f.kind != "missing"]
    against = " ".join(peers) or missing("transformers").sentence
    if other.kind == "missing":
        against += " Its continuous batching did not run here." if peers else ""
    elif other.direction:
        against += f" Neither the wide engine nor {managed} has a queue, so what differs is the time of a step."
    return {
        "variable_finding": said + why,
        "wide_finding": roomy.sentence,
        "step_finding": step.sentence,
        "peers_finding": against,
    }


def same_answers(same: int | None, requests: int) -> dict[str, str]:
    """How many of this run's answers are transformers' to the last token; `same` is None where it did not run."""
    said = "transformers' generate did not run here, so that its answers could not be compared."
    if same is not None:
        said = (
            f"In this run {same} of {requests} answers are the same to the last token. The two add up their sums in "
            "different orders, which can decide between two tokens with almost the same logit."
        )
        if same == requests:
            said = f"In this run all {requests} answers are the same to the last token."
    return {"same_answers_finding": said}


def equal(run: Any) -> dict[str, str]:
    """Both schedulers on answers of one length."""
    series = run[EQUAL]
    found = compare(
        cell(series, "tok_s", 1),
        cell(series, "tok_s", 0),
        CONTINUOUS,
        STATIC,
        what="throughput",
        unit=RATE,
    )
    steps = [value(cell(series, "steps", i)).middle for i in (0, 1)]
    if found.kind in ("missing", "undefined") or None in steps:
        return {"equal_finding": missing("the run with equal lengths").sentence}
    if found.direction and steps[0] == steps[1]:
        said = f"{found.sentence} With the same {number(steps[0])} steps the scheduler cannot be the cause: "
        said += (
            "two timings of the same work differ by as much here."
            if found.kind == "little"
            else "something else changed between the two, so this run does not compare them."
        )
    else:
        said = f"Here, {found}."
    return {"equal_finding": said}  # fmt: skip


def published_equal(published: Any) -> dict[str, str]:
    """The published comparison of the two schedulers, and the batch of the published sweep that has its rate."""
    found, curve = published["continuous_vs_static"], published["batch_sweep"]
    static, continuous = found["static_tok_s"], found["continuous_tok_s"]
    said = compare(continuous, static, CONTINUOUS, STATIC, what="throughput", unit=RATE)
    batch, rate = min(zip(curve["batch"], curve["tok_s"]), key=lambda pair: abs(pair[1] - static))
    near = "No batch of the published sweep has that rate."
    if size_of(rate / static) == "about":
        near = (
            f"The published sweep has about that rate ({quantity(rate, RATE)}) at batch {batch}, which suggests that many "
            "slots."
        )
    return {"published_equal_finding": f"In the published run, {said}. {near}"}
