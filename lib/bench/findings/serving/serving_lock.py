"""Sentences of chapter 5 on what HTTP and the interpreter lock cost, and the same arithmetic for a 7B model.

Introduced in chapter 5.
"""

from typing import Any

from lib.bench.findings.run_notes import of_record
from lib.bench.findings.serving.serving_rows import param, scaled, waves
from lib.bench.findings.values import (
    Measured,
    cell_of,
    over,
    percent,
    positive,
    quantity,
    times,
    value,
)
from lib.bench.findings.vocabulary import Finding, compare, missing, versus_prediction
from lib.bench.measure import counts
from lib.bench.measure.data_sheets import H100, LLAMA_7B
from lib.bench.records.series import Series

GOAL = 0.9  # share of the offline throughput
RATE = "tokens/s"
SLOTS_7B, CONTEXT_7B, ANSWER_7B, USERS_7B, BURST_7B = 64, 1000, 100, 4, 256


def busy_share(series: Series | None) -> float | None:
    """cX: the share of a core that events of one token each take at the offline throughput."""
    return scaled(cell_of(series, "offline", "throughput"), param(series, "event_seconds"))


def http(run: Any) -> dict[str, str]:
    """Under the figure of the throughput over HTTP."""
    series = run["throughput"]
    offline, whole, streamed = (
        cell_of(series, name, "throughput") for name in ("offline", "whole", "streamed")
    )
    busy, bound = busy_share(series), positive(cell_of(series, "streamed", "bound"))
    said = missing("the bound without overlap").sentence
    if busy is not None and bound is not None:
        rate, event = positive(offline), param(series, "event_seconds")
        said = (
            f"At {quantity(rate, RATE)} and {quantity(event, 's')} per event, events would take "
            f"{percent(busy)} of one core, and without any overlap {percent(bound)} of the throughput "
            "would be left."
        )
    pairs = ((streamed, "the streamed run"), (whole, "the run with whole answers"))
    found = [
        compare(rate, offline, name, "the offline run", what="throughput", unit=RATE)
        for rate, name in pairs
    ]
    return {
        "bound_finding": of_record(run, said),
        "share_finding": " ".join([f.sentence for f in found] + [_above(found)]).strip(),
        "goal_finding": _goal(streamed, offline),
        "cost_finding": _cost(streamed, offline, bound),
    }


def _above(found: list[Finding]) -> str:
    """What a share above 100 % is: no gain."""
    if any(f.direction > 0 for f in found):
        return "HTTP cannot make an engine faster, so something else differs between these runs."
    if any(f.ratio is not None and f.ratio >= 1.005 for f in found):
        return (
            "HTTP cannot make an engine faster: a share above 100 % is the spread of the rounds, or their order, "
            "and no gain."
        )
    return ""


def _goal(streamed: Measured, offline: Measured) -> str:
    share = over(streamed, offline)
    if share is None:
        return missing("the share that is streamed").sentence
    low, high = (value(streamed).low, value(streamed).high)
    middle = positive(offline)
    if low / middle < GOAL <= high / middle and value(streamed).count > 1:
        return f"The goal was {percent(GOAL)}: the turns lie on both sides of it, so this run cannot tell."
    met = "reaches" if share >= GOAL else "does not reach"
    return f"The goal was {percent(GOAL)}: with {percent(share)} streamed, this run {met} it."


def _cost(streamed: Measured, offline: Measured, bound: float | None) -> str:
    """What the bound leaves out, where the measured share is below it by more than the repeats spread."""
    share = over(streamed, offline)
    if share is None or bound is None:
        return missing("the share against its bound").sentence
    if share >= 0.98 * bound or value(streamed).overlaps(value(offline)):
        return "What the bound leaves out cannot be seen in this run."
    return (
        f"The share is below the bound by {100 * (bound - share):.0f} percentage points, so "
        f"something else takes time too. The "
        "bound counts events. It does not count the parsing of requests, the passing of work between threads at each step, "
        "or the client, which uses cores of this machine."
    )


def convoy(series: Series | None) -> float | None:
    """Seconds of one switch interval per call that releases the lock; old records have only the count of all calls."""
    calls = param(series, "operators") or param(series, "calls")
    interval = param(series, "switch_interval")
    return calls * interval if calls and interval else None


def neighbours(run: Any) -> tuple[Measured, Measured, Measured]:
    """Seconds of a step alone, beside a busy process, and beside a busy thread."""
    series = run["step_beside"]
    return tuple(cell_of(series, n, "step") for n in ("nobody", "a busy process", "a busy thread"))


def core_loss(run: Any) -> float | None:
    """How many times as long a step takes with one core less, if its work were divided evenly."""
    cores = param(run["step_beside"], "cores")
    return cores / (cores - 1) if cores and cores > 1 else None


def lock(run: Any) -> dict[str, str]:
    """Under the figure of a step beside a busy process and a busy thread."""
    alone, process, thread = neighbours(run)
    factor = over(process, alone)
    said = missing("a step beside a busy process").sentence
    if factor is not None:
        said = f"Beside a busy process, a step took {times(factor)} as long as alone"
        verdict = versus_prediction(core_loss(run), factor, "×")
        if core_loss(run) is None:
            said += "."
        elif verdict.direction > 0:
            said += f", more than the {times(core_loss(run))} that the loss of one core explains: {verdict.verdict}."
        else:
            said += f"; the loss of one core explains up to {times(core_loss(run))}."
    found = compare(thread, process, "the step beside a thread", "the step beside a process")
    return {
        "process_finding": said,
        "thread_finding": found.sentence + (_lost(run) if found.direction > 0 else ""),
        "lock_finding": _lesson(found),
    }


def lost_share(run: Any) -> float | None:
    """Share of the calls that release the lock at which a switch interval was lost; None where that is unknown."""
    _, process, thread = neighbours(run)
    most = convoy(run["step_beside"])
    a, b = positive(process), positive(thread)
    return (b - a) / most if most and a and b else None


def _lost(run: Any) -> str:
    share = lost_share(run)
    series = run["step_beside"]
    calls = param(series, "operators") or param(series, "calls")
    what = "calls that run an operator" if param(series, "operators") else "calls"
    if share is None or share < 0.01:
        return ""
    if share > 1.1:
        most = f"one switch interval for each of the {calls:,} {what}"
        return f" The difference is more than {most}, so the lock is not all of it."
    return (
        f" The difference is {share * calls:,.0f} switch intervals for {calls:,} {what}: the lock "
        "was lost at "
        f"{percent(min(share, 1.0))} of them. An operation that ends before the other thread has woken up keeps its lock."
    )


def _lesson(found: Finding) -> str:
    if found.kind in ("missing", "undefined"):
        return missing("the cost of the shared lock").sentence
    if found.kind == "cannot tell":
        return "So this run cannot tell what sharing the lock costs."
    if found.direction <= 0:
        return (
            "This run shows no cost of the shared lock. That depends on how fast a waiting thread wakes up, and so on the "
            "machine and its other load."
        )
    return (
        "One loop in Python on the event loop's thread would slow every step in this way. This server shares the lock "
        "without much loss only as long as its event loop is mostly asleep."
    )


def realistic() -> dict[str, str]:
    """The chapter's numbers for a 7B model in bfloat16 on an H100, from its data sheet."""

    def step(batch: int) -> float:
        lens = [CONTEXT_7B] * batch
        read = counts.step_bytes(LLAMA_7B, "bfloat16", lens)
        return H100.time(read, counts.step_flops(LLAMA_7B, lens), "bfloat16")

    one, full = step(1), step(SLOTS_7B)
    rate = SLOTS_7B / full
    batches = waves(BURST_7B, SLOTS_7B)
    return {
        "realistic_finding": (
            f"With a context of {CONTEXT_7B:,} tokens a step of one sequence takes at least {quantity(one, 's')}, one of "
            f"{SLOTS_7B} at least {quantity(full, 's')}. A server that computes on its event loop answers no other request for at least "
            f"{quantity(USERS_7B * ANSWER_7B * one, 's')} while it answers {USERS_7B} users with {ANSWER_7B} tokens each. "
            f"A burst of {BURST_7B} such requests makes {batches} batches, and the last one waits at least "
            f"{quantity(batches * ANSWER_7B * full, 's')}. At up to {rate:,.0f} tokens/s, one step makes {SLOTS_7B} events, "
            f"so an event may cost at most {quantity(full / SLOTS_7B, 's')} before the event loop fills a core."
        )
    }


def realistic_events(run: Any) -> dict[str, str]:
    """The share of a core that this machine's events would take at the 7B model's rate."""
    event = param(run["throughput"], "event_seconds")
    if not event or not value(event).known or event <= 0:
        return {"events_7b_finding": missing("the cost of an event").sentence}
    lens = [CONTEXT_7B] * SLOTS_7B
    read = counts.step_bytes(LLAMA_7B, "bfloat16", lens)
    rate = SLOTS_7B / H100.time(read, counts.step_flops(LLAMA_7B, lens), "bfloat16")
    return {
        "events_7b_finding": (
            f"At {quantity(event, 's')} per event, events would take {percent(rate * event)} of one "
            f"core, and {percent(1 / (1 + rate * event))} of the throughput would be left without any "
            "overlap."
        )
    }
