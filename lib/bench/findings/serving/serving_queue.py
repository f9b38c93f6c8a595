"""Sentences of chapter 5 on a burst of requests: the queue without a limit, and the one with a limit.

Introduced in chapter 5.
"""

from typing import Any

from lib.bench.findings.serving.serving_rows import param, scaled, waves
from lib.bench.findings.values import Measured, cell_of, over, percent, positive, quantity, value
from lib.bench.findings.vocabulary import compare, missing, versus_prediction
from lib.bench.records.series import Series

PATIENCE = 2.0  # seconds, of exercise 3
FULL, HALF = "a full batch", "a batch of users"


def wave(run: Any) -> Measured:
    """Seconds of a full batch of answers, offline."""
    return cell_of(run["offline"], FULL, "seconds")


def worst(series: Series | None, queue: str) -> Measured:
    """The last answer of a burst: of each burst where that was kept, else of all answers."""
    kept = cell_of(series, queue, "worst")
    if value(kept).known:
        return kept
    answered = cell_of(series, queue, "answered")
    return max(answered) if isinstance(answered, list) else None


def expected(run: Any, requests: str) -> float | None:
    """Seconds until the last answer: batch after batch. `requests`: "requests" or "limit"."""
    series = run["burst"]
    return scaled(wave(run), waves(param(series, requests), param(series, "max_num_seqs")))


def queue(run: Any) -> dict[str, str]:
    """Under the figure of the burst."""
    series = run["burst"]
    return {
        "no_end_finding": _last(run, "no end", "requests", "Without a limit"),
        "bounded_finding": _last(run, "bounded", "limit", "With the limit"),
        "refused_finding": _refused(run),
        "kinder_finding": compare(
            worst(series, "bounded"), worst(series, "no end"),
            "the last answer with a limit", "the last answer without one",
        ).sentence,
    }  # fmt: skip


def _last(run: Any, name: str, requests: str, how: str) -> str:
    found = worst(run["burst"], name)
    if positive(found) is None:
        return missing(f"the last answer {how.lower()}").sentence
    said = f"{how}, the last answer was complete after {quantity(positive(found), 's')}"
    predicted = expected(run, requests)
    if predicted is None:
        return f"{said}; its prediction was not measured here."
    verdict = versus_prediction(predicted, found)
    return f"{said} (predicted: {quantity(predicted, 's')}): {verdict.verdict}."


def _refused(run: Any) -> str:
    series = run["burst"]
    count, answered = (
        value(cell_of(series, "bounded", name)).middle for name in ("num_refused", "num_answered")
    )
    if count is None or answered is None or count < 0 or answered < 0:
        return missing("the number of refusals").sentence
    if not count:
        return "No request was refused, so the limit was not reached."
    bursts = param(series, "rounds") or 1
    of = "one burst" if bursts == 1 else f"{bursts} bursts"
    said = f"In {of}, {answered:,.0f} requests were answered and {count:,.0f} refused"
    seconds = positive(cell_of(series, "bounded", "refused"))
    if seconds is not None:
        said += f", after {quantity(seconds, 's')} at the median"
        part = over(seconds, wave(run))
        said += "" if part is None else f" ({percent(part)} of the time of a batch)"
    most = param(series, "limit")
    extra = answered - bursts * most if most else 0
    if extra > 0:
        said += ". More than the limit were answered, because a place became free while the burst was still arriving"
    return f"{said}."


def limit_for(run: Any, patience: float = PATIENCE) -> int | None:
    """Most requests inside with which no answer takes longer than `patience` seconds, by the model of batches."""
    seconds, seats = positive(wave(run)), param(run["burst"], "max_num_seqs")
    return None if seconds is None or not seats else int(patience / seconds) * seats


def exercises(run: Any) -> dict[str, str]:
    """Solutions of the exercises that depend on this machine's times."""
    seats, seconds = param(run["burst"], "max_num_seqs"), positive(wave(run))
    most = limit_for(run)
    if most is None:
        said = missing("the time of a full batch").sentence
    elif most == 0:
        said = (
            f"A full batch takes {quantity(seconds, 's')} on this machine, so no limit is low enough: the batch itself has to "
            "be smaller."
        )
    else:
        fit = most // seats
        said = (
            f"A full batch of {seats} answers takes {quantity(seconds, 's')}, so {fit} {'batch fits' if fit == 1 else 'batches fit'} "
            f"into {quantity(PATIENCE, 's')}, and the limit is {most} requests. With one more, the last of them would be in "
            f"another batch and wait {quantity((fit + 1) * seconds, 's')}."
        )
    return {"limit_finding": said, "half_finding": _half(run)}


def _half(run: Any) -> str:
    """Half the slots and the same limit: more batches, each faster or not."""
    offline, series = run["offline"], run["burst"]
    most, seats = param(series, "limit"), param(series, "max_num_seqs")
    small = value(cell_of(offline, HALF, "requests")).middle
    now, then = positive(wave(run)), positive(cell_of(offline, HALF, "seconds"))
    if None in (most, seats, small, now, then) or 2 * small != seats:
        return "The time of a batch of half the size was not measured here."
    before, after = waves(most, seats), waves(most, small)
    found = compare(
        after * then, before * now, "the burst with half the slots", "the burst as it is"
    )
    batches = f"{after} batches of {quantity(then, 's')} take the place of {before} of {quantity(now, 's')}"
    return f"By the offline times, {batches}. So {found}."
