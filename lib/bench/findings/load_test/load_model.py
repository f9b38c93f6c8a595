"""The model of waiting users: a step's line through two points, its bound, and what it foretells.

Each function takes a run; most return sentences of chapter 6.

Introduced in chapter 6.
"""

from typing import Any

from lib.bench.findings.load_test.load_rows import (
    COMPARED,
    CONTIGUOUS,
    NAMES,
    PAGED,
    SEQUENTIAL,
    by_users,
    counted,
    labels,
    users,
)
from lib.bench.findings.run_notes import is_recorded
from lib.bench.findings.values import Measured, cell, number, positive, quantity, times
from lib.bench.findings.vocabulary import missing, uncapital, versus_bound


def line(run: Any, server: str) -> tuple[float, float] | None:
    """a and b of a server's steps (s), from the predicted throughput at the fewest and the most users; None without."""
    levels, predicted = users(run), by_users(run, f"{server}, predicted")
    if len(levels) < 2 or len(predicted) != len(levels) or levels[-1] <= levels[0]:
        return None
    slow, fast = positive(predicted[0]), positive(predicted[-1])
    if slow is None or fast is None:
        return None
    one, many = levels[0] / slow, levels[-1] / fast
    each = (many - one) / (levels[-1] - levels[0])
    shared = one - each * levels[0]
    return (shared, each) if shared > 0 and each > 0 else None


def gain_at(run: Any) -> int:
    """Index of the number of users at which the gain is taken apart; the last where it is not noted."""
    series, levels = run["gain_by_length"], users(run)
    at = None if series is None else series.params.get("users")
    return levels.index(at) if at in levels else -1


def predicted_at(run: Any, server: str, row: int) -> Measured:
    """Predicted tokens/s of a server in one row; None where there is none."""
    return cell(run["throughput_by_users"], f"{server}, predicted", row)


def ratio(a: Measured, b: Measured) -> float | None:
    """a over b by their middles; None where one is missing or not above zero."""
    x, y = positive(a), positive(b)
    return x / y if x and y else None


def foretold(run: Any, drawn: Any = None) -> dict[str, str]:
    """What the model says before the sweep, from two points for each server.

    drawn: the run of the figure of the sweep. Where that is a recorded one, it has two points of its own.
    """
    said = _foretold(run)
    if is_recorded(drawn):
        said = (
            f"In this run: {uncapital(said)} The figures of the sweep and the table of the predictions at the end show "
            "the recorded run, whose predictions come from its own two points."
        )
    return {"model_finding": said}


def _foretold(run: Any) -> str:
    found, levels = line(run, PAGED), users(run)
    if found is None:
        return missing("the model's line").sentence
    shared, each = found
    row = gain_at(run)
    predicted = {name: predicted_at(run, name, row) for name in COMPARED}
    batching = ratio(predicted[CONTIGUOUS], predicted[SEQUENTIAL])
    paging = ratio(predicted[PAGED], predicted[CONTIGUOUS])
    said = f"By these points, a step of {NAMES[PAGED]} {_parts(shared, each, levels)}."
    if batching is None or paging is None:
        return f"{said} {missing('the predicted gain').sentence}"
    return (
        f"{said} For {number(levels[row])} users the model says: batching gives "
        f"{times(batching)}, and paging {times(paging)}."
    )


def _parts(shared: float, each: float, levels: list[float]) -> str:
    """What a step takes, and what each sequence adds, where two noisy points tell the two apart."""
    one, full = (shared + n * each for n in (levels[0], levels[-1]))
    if full <= 1.1 * one:
        return (
            f"takes {quantity(full, 's')} with {number(levels[-1])} sequences and {quantity(one, 's')} "
            f"with {number(levels[0])}, about the same: they do not show what a sequence adds"
        )
    if shared < 0.1 * each:
        return f"takes {quantity(each, 's')} per sequence, and its sequences share almost nothing"
    return (
        f"takes {quantity(shared, 's')}, and {quantity(each, 's')} more for each sequence in it, so that "
        f"from {counted(int(shared / each) + 1, 'user')} on the sequences add more than they share"
    )


def line_bound(run: Any) -> dict[str, str]:
    """A step of one sequence, and a full one, against the least that this machine's ceilings allow.

    The arithmetic of the sequences may hide behind the reading of the weights, so the least time of n sequences is the
    larger of the two. The parts a and b have no bound of their own.
    """
    series = run["step_line"]
    row = labels(series, "server").index(PAGED) if PAGED in labels(series, "server") else 0
    shared, each, reading, work = (
        positive(cell(series, name, row))
        for name in ("shared", "each", "shared_bound", "each_bound")
    )
    if None in (shared, each, reading, work):
        return {"bound_finding": missing("a step over its bound").sentence}
    seats = series.params.get("max_num_seqs") or (users(run) or [1])[-1]
    one, full = (versus_bound(max(reading, n * work), shared + n * each) for n in (1, seats))
    if "missing" in (one.kind, full.kind):
        return {"bound_finding": missing("a step over its bound").sentence}
    where = "In the recorded run, at" if getattr(run, "recorded", False) else "At"
    return {
        "bound_finding": f"{where} {NAMES[PAGED]}, a step of one sequence is {one}, and one of "
        f"{number(seats)} is {full}."
    }
