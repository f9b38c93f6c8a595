"""Sentences of chapter 5 on a burst of requests: the queue without a limit, and the one with a limit.

Introduced in chapter 5.
"""

from itertools import pairwise
from typing import Any

from lib.bench.findings.serving.serving_rows import param, waves
from lib.bench.findings.values import (
    Measured,
    cell_of,
    column,
    number,
    over,
    percent,
    positive,
    quantity,
    value,
)
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


def batch_seconds(run: Any, size: float) -> float | None:
    """Seconds of a batch of `size` answers, offline.

    A size between two measured ones lies on the line between them; one beyond all of them: None.
    """
    series = run["offline"]
    sizes = (value(size_).middle for size_ in column(series, "requests"))
    known = sorted(
        (n, seconds)
        for n, m in zip(sizes, column(series, "seconds"))
        if n and n > 0 and (seconds := positive(m))
    )
    exact = [seconds for n, seconds in known if n == size]
    if exact:
        return exact[0]
    for (n0, t0), (n1, t1) in pairwise(known):
        if n0 < size < n1:
            return t0 + (t1 - t0) * (size - n0) / (n1 - n0)
    return None


def in_batches(run: Any, requests: float | None, seats: float | None) -> float | None:
    """Seconds until the last of so many equal requests: full batches, then one of the rest."""
    if not waves(requests, seats):
        return None
    full, rest = divmod(requests, seats)
    parts = [batch_seconds(run, seats)] * int(full) + [batch_seconds(run, rest)] * bool(rest)
    return None if None in parts else sum(parts)


def expected(run: Any, requests: str) -> float | None:
    """Seconds until the last answer of the burst. `requests`: "requests" or "limit"."""
    series = run["burst"]
    return in_batches(run, param(series, requests), param(series, "max_num_seqs"))


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
    """Most requests inside with which no answer of a burst takes more than `patience` seconds."""
    seconds, seats = positive(wave(run)), param(run["burst"], "max_num_seqs")
    if seconds is None or not seats:
        return None
    full = int(patience / seconds)
    left = patience - full * seconds
    more = (n for n in range(1, seats) if (t := batch_seconds(run, n)) is not None and t <= left)
    return full * seats + max(more, default=0)


def exercises(run: Any) -> dict[str, str]:
    """Solutions of the exercises that depend on this machine's times."""
    return {
        "limit_finding": _limit(run),
        "little_limit": _by_little(run),
        "half_finding": _half(run),
    }


def _limit(run: Any) -> str:
    seats, seconds = param(run["burst"], "max_num_seqs"), positive(wave(run))
    most = limit_for(run)
    if most is None:
        return missing("the time of a full batch").sentence
    full, more = divmod(most, seats)
    said = f"A full batch of {seats} answers takes {quantity(seconds, 's')}"
    if not most:
        one = batch_seconds(run, 1)
        alone = f", and one answer alone {quantity(one, 's')}" if one else ""
        return f"{said}{alone}, so no limit is low enough."
    if full:
        batches = "1 batch fits" if full == 1 else f"{full} batches fit"
        left = quantity(PATIENCE - full * seconds, "s")
        said += f", so {batches} into {quantity(PATIENCE, 's')}, and {left} are left. "
    else:
        said += ", which is too long. "
    fits, next_one = (batch_seconds(run, n) if n else None for n in (more, more + 1))
    if next_one is None:
        said += missing("the time of a smaller batch").sentence
    elif fits is None:
        said += f"One answer more takes {quantity(next_one, 's')}."
    else:
        said += (
            f"Of smaller batches, by the offline times, one of {more} takes {quantity(fits, 's')}, "
            f"and one of {more + 1} takes {quantity(next_one, 's')}."
        )
    return f"{said} So the limit is {number(most)} request{'s' * (most != 1)}."


def _by_little(run: Any) -> str:
    seats, seconds = param(run["burst"], "max_num_seqs"), positive(wave(run))
    if not seats or seconds is None:
        return missing("the throughput of full batches").sentence
    inside = number(PATIENCE * seats / seconds)
    return (
        f"By Little's law and the throughput of full batches, {inside} requests inside give a mean of "
        f"{quantity(PATIENCE, 's')}; some of them take longer."
    )


def _half(run: Any) -> str:
    """Half the slots and the same limit: more batches, each faster or not."""
    series = run["burst"]
    most, seats = param(series, "limit"), param(series, "max_num_seqs")
    if not waves(most, seats) or seats < 2:
        return missing("a burst with half the slots").sentence
    small = seats // 2
    now, then = in_batches(run, most, seats), in_batches(run, most, small)
    if now is None or then is None:
        return missing("a batch of half the size").sentence
    found = compare(then, now, "the burst with half the slots", "the burst as it is")
    return (
        f"By the offline times, {_sizes(most, small)} take the place of {_sizes(most, seats)}. "
        f"{found.sentence}"
    )


def _sizes(requests: int, seats: int) -> str:
    """ "3 batches of 4", "a batch of 8 and one of 4"."""
    full, rest = divmod(requests, seats)
    parts = []
    if full:
        parts.append(f"a batch of {seats}" if full == 1 else f"{full} batches of {seats}")
    if rest:
        parts.append(f"one of {rest}" if full else f"a batch of {rest}")
    return " and ".join(parts)
