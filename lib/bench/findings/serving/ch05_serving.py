"""The sentences of chapter 5 that depend on what was measured; those on bursts, HTTP and the lock have modules of their own.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None where it has none.

Introduced in chapter 5.
"""

from typing import Any

from lib.bench.findings.predictions import Prediction, with_causes
from lib.bench.findings.serving.serving_lock import (
    convoy,
    core_loss,
    http,
    lock,
    neighbours,
    realistic,
    realistic_events,
)
from lib.bench.findings.serving.serving_queue import HALF, exercises, expected, queue, worst
from lib.bench.findings.serving.serving_rows import at_most, param, scaled
from lib.bench.findings.values import (
    Measured,
    cell,
    cell_of,
    column,
    number,
    over,
    positive,
    quantity,
    times,
    value,
)
from lib.bench.findings.vocabulary import Finding, compare, missing, versus_prediction

__all__ = ["exercises", "http", "leaving", "lock", "loop", "of_http", "of_leaving", "of_lock", "of_loop", "of_queue",
           "predictions", "queue", "realistic", "realistic_events", "render", "timeline"]  # fmt: skip

LOOP, LOCKED, THREAD = "the loop computes", "threads and a lock", "an engine thread"
HEALTH, PROBES, WASTED = "health_under_load", "health_probes", "tokens_after_leaving"
MOST_WASTED = 2  # tokens: an abort takes effect between two steps


def alone(run: Any) -> Measured:
    """Seconds of one answer, offline."""
    return cell_of(run["offline"], "one answer", "seconds")


def one_step(run: Any) -> float | None:
    """Seconds of one token of one answer."""
    answer = param(run["offline"], "answer")
    return scaled(alone(run), 1 / answer if answer else None)


def one_by_one(run: Any) -> float | None:
    """Seconds of all users' answers, one after the other."""
    return scaled(alone(run), param(run["offline"], "users"))


def _judged(run: Any, subject: str, predicted: float | None, measured: Measured) -> str:
    got = positive(measured)
    if got is None:
        return missing(subject).sentence
    said = f"{subject[:1].upper()}{subject[1:]} took {quantity(got, 's')}"
    if predicted is None:
        return f"{said}; its prediction was not measured here."
    verdict = versus_prediction(predicted, measured).verdict
    return f"{said} (predicted: {quantity(predicted, 's')}): {verdict}."


def loop(run: Any) -> dict[str, str]:
    """Under the table of the three servers."""
    series = run[HEALTH]
    health = {n: cell_of(series, n, "health_worst") for n in (LOOP, LOCKED, THREAD)}
    answers = {n: cell_of(series, n, "all_answers") for n in (LOOP, LOCKED, THREAD)}
    deaf = compare(health[LOCKED], health[LOOP], "the worst probe of a turn with a lock and threads",
                   "that of the loop that computes")  # fmt: skip
    gain = compare(
        answers[THREAD], answers[LOCKED], "the server with an engine thread", "the one with a lock"
    )
    why = ""
    if gain.direction < 0:
        why = " Behind the lock the scheduler never has two requests at once, so it has nothing to batch."
    return {
        "slope_finding": _slope(run),
        "blocking_finding": _judged(run, "the worst probe of a turn, at the server that computes on its loop,",
                                    one_by_one(run), health[LOOP]),
        "locked_finding": deaf.sentence,
        "locked_all_finding": _judged(run, "all answers together", one_by_one(run), answers[LOCKED]),
        "threaded_finding": at_most("the worst probe of a turn at the server with an engine thread", one_step(run),
                                    health[THREAD], "one step").sentence + _beyond_a_step(run),
        "batching_finding": gain.sentence + why,
        "offline_finding": _too_low(run),
    }  # fmt: skip


def _beyond_a_step(run: Any) -> str:
    """How many probes of the engine thread took longer than one step, all turns together; begins with a space."""
    series, step = run[PROBES], one_step(run)
    names = series["server"] if series is not None and "server" in series else []
    found = [positive(m) for name, m in zip(names, column(series, "latency")) if name == THREAD]
    known = [seconds for seconds in found if seconds]
    if not known or step is None:
        return ""
    late = sum(seconds > step for seconds in known)
    count = number(late) if late else "none"
    return f" Of its {counted_probes(len(known))} in all turns, {count} took longer than one step."


def counted_probes(n: int) -> str:
    """ "1 probe", "84 probes"."""
    return f"{number(n)} probe{'s' * (n != 1)}"


def _too_low(run: Any) -> str:
    """What the offline times leave out, and whether all predictions from them were too low."""
    said = "These predictions rest on times that were taken offline, without clients and probes"
    by_name = (p for p in of_loop(run) if not p.sense)  # without the one of a single step
    ratios = [p.ratio for p in by_name]
    if None not in ratios and all(r > 1.1 for r in ratios):
        said += (
            ". All three are too low here; how much of that is due to the probes was not measured"
        )
    return f"{said}."


def answered_at(run: Any) -> list[list[float]]:
    """When each probe of the loop that computes was answered, turn by turn, in seconds since the users asked.

    The turns follow each other, each in the order of its questions: where the time of asking falls, a turn begins.
    """
    series = run[PROBES]
    names = series["server"] if series is not None and "server" in series else []
    rows = zip(names, column(series, "at"), column(series, "latency"))
    pairs = [(value(at).middle, positive(m)) for name, at, m in rows if name == LOOP]
    turns: list[list[float]] = []
    before = float("inf")
    for at, seconds in pairs:
        if at is None or at < 0 or not seconds:
            continue
        if at < before:
            turns.append([])
        turns[-1].append(at + seconds)
        before = at
    return turns


def _slope(run: Any) -> str:
    """Whether all probes of the loop that computes were answered when the stall of their turn had ended."""
    turns = answered_at(run)
    if not turns:
        return missing("the probes of the server that computes on its loop").sentence
    late = sum(at >= 0.9 * max(ends) for ends in turns for at in ends)
    count = sum(map(len, turns))
    stall = "the stall" if len(turns) == 1 else "their turn's stall"
    if late < 0.95 * count:
        were = "was" if late == 1 else "were"
        return (
            f"Of the {counted_probes(count)} of the server that computes on its loop, "
            f"{number(late)} {were} answered at the end of {stall}, "
            "and the others before it."
        )
    which = "all" if late == count else f"{number(late)} of"
    shape = "a slope" if len(turns) == 1 else "a slope for each turn"
    return (
        f"The marks of the server that computes on its loop lie on {shape}: {which} its "
        f"{counted_probes(count)} were answered at the end of {stall}, and "
        "the earlier one was sent, the longer it waited."
    )


def timeline(run: Any) -> dict[str, str]:
    """Under the figure of four users."""
    series = run["timeline"]
    prompts = series["prompt"] if series is not None and "prompt" in series else []
    longest = max(range(len(prompts)), key=lambda i: prompts[i] or 0) if prompts else 0
    lengths = [prompts[i] if prompts else None for i in (longest, 0)]
    first = compare(
        cell(series, "ttft", longest), cell(series, "ttft", 0),
        f"the prompt of {lengths[0]} tokens", f"the first prompt of {lengths[1]} tokens",
    )  # fmt: skip
    if None in lengths or first.kind in ("missing", "undefined"):
        long = missing("the first token of the long prompt").sentence
    else:
        long = f"Up to its first token, {first}."
    median, most = (positive(cell(series, f"gap_{name}", 0)) for name in ("median", "max"))
    if median is None or most is None:
        return {
            "long_finding": long,
            "gap_finding": missing("the pace of user 1's tokens").sentence,
        }
    gap = f"User 1's tokens come {quantity(median, 's')} apart at the median and {quantity(most, 's')} at most"
    if most < 1.5 * median:
        gap += ", so no other prompt delayed them much"
    elif cell(series, "prompt_in_gap", 0):
        gap += f", {times(most / median)} as long: that step also computed another user's prompt"
    return {"long_finding": long, "gap_finding": f"{gap}."}


def leaving(run: Any) -> dict[str, str]:
    """Under the figure of the client that leaves."""
    series = run[WASTED]
    before, after, own, freed = (
        param(series, n) for n in ("used_before", "used_after", "long_blocks", "freed_s")
    )
    if None in (before, after, own, freed) or before < own:
        pool = missing("the pool around the moment of leaving").sentence
    else:
        taken = after - before + own
        pool = f"The pool held {before} blocks, {own} of them filled by the client that left"
        pool += f"; {quantity(freed, 's')} after it hung up, the metrics showed {after}"
        pool += f". The others had taken {taken} more in the meantime." if taken > 0 else "."
    arrived = param(series, "leave_after")
    wasted, asked = (value(cell_of(series, THREAD, n)).middle for n in ("for_nobody", "asked_for"))
    if None in (arrived, wasted, asked):
        text = missing("the tokens after leaving").sentence
    else:
        (judged,) = of_leaving(run)
        more = f"{wasted:,.0f} more {'was' if wasted == 1 else 'were'} computed and not read"
        text = f"{arrived} tokens arrived, {more}, of {asked:,.0f} asked for"
        text += f" (predicted: at most {MOST_WASTED}): {judged.verdict}."
    return {"pool_finding": pool, "wasted_finding": text}


def of_loop(run: Any) -> list[Prediction]:
    """The first two predictions of the chapter."""
    health = run[HEALTH]
    return [
        Prediction("worst /health of a turn, loop that computes", one_by_one(run), cell_of(health, LOOP, "health_worst")),
        Prediction("worst /health of a turn, engine thread: one step", one_step(run), cell_of(health, THREAD, "health_worst"),
                   sense="at most"),
        Prediction("all answers behind a lock, one after the other", one_by_one(run), cell_of(health, LOCKED, "all_answers")),
        Prediction("all answers of the engine thread, from one offline batch", cell_of(run["offline"], HALF, "seconds"),
                   cell_of(health, THREAD, "all_answers")),
    ]  # fmt: skip


def of_leaving(run: Any) -> list[Prediction]:
    """The third."""
    claim = "tokens computed after the client has left"
    wasted = value(cell_of(run[WASTED], THREAD, "for_nobody")).middle
    if wasted == 0:  # no ratio, and the best that the limit allows
        few = f"at most {MOST_WASTED}"
        return [Prediction(claim, few, Finding("0", few))]
    return [Prediction(claim, MOST_WASTED, wasted, unit="", sense="at most")]


def of_queue(run: Any) -> list[Prediction]:
    """The fourth."""
    return [
        Prediction(f"last answer of a burst {how} a limit, from batches", expected(run, requests), worst(run["burst"], name))
        for how, requests, name in (("without", "requests", "no end"), ("with", "limit", "bounded"))
    ]  # fmt: skip


def of_http(run: Any) -> list[Prediction]:
    """The share of the throughput that is left over HTTP."""
    series = run["throughput"]
    rates = [cell_of(series, name, "throughput") for name in ("streamed", "offline")]
    claim = "share of throughput streamed, without overlap"
    return [
        Prediction(
            claim, cell_of(series, "streamed", "bound"), over(*rates), unit="", sense="at least"
        )
    ]


def of_lock(run: Any) -> list[Prediction]:
    """A step beside a busy process, and beside a busy thread."""
    nobody, process, thread = neighbours(run)
    pair = positive(thread), positive(nobody)
    more = None if None in pair else max(1e-9, pair[0] - pair[1])
    return [
        Prediction("a step beside a busy process over one alone, from the cores", core_loss(run), over(process, nobody),
                   unit="×", sense="at most"),
        Prediction("time that a busy thread adds to a step, an interval per operator", convoy(run["step_beside"]), more,
                   sense="at most"),
    ]  # fmt: skip


def predictions(run: Any) -> list[Prediction]:
    """All predictions of the chapter from one run; the chapter may take each part from another."""
    parts = (of_loop, of_leaving, of_queue, of_http, of_lock)
    return with_causes([prediction for part in parts for prediction in part(run)])


def render(run: Any) -> dict[str, str]:
    """Every sentence of the chapter, by the name under which the chapter glues it."""
    parts = (loop, timeline, leaving, queue, exercises, http, lock, realistic_events)
    found = realistic()
    for part in parts:
        found |= part(run)
    return found
