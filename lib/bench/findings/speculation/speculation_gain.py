"""Throughput with drafts over without: by batch, with adaptation, and on random text.

Each function takes a run; most return sentences of chapter 10.

Introduced in chapter 10.
"""

from collections.abc import Sequence
from typing import Any

from lib.bench.findings.run_notes import of_record
from lib.bench.findings.values import cell, cell_of, listed, over, percent, value
from lib.bench.findings.vocabulary import compare, goal_sentence, missing, versus_prediction
from lib.bench.measure.speculation_model import crossover

COPYING_GOAL, RANDOM_GOAL = 2.0, 0.97
_SAME = 0.01  # two rates that are nearer to each other than this share are called the same


def gain(run: Any, row: int = 0, column: str = "with") -> float | None:
    """Tokens per second with drafts over without, at one row of the sweep of batches."""
    series = run["rate_by_batch"]
    return over(cell(series, column, row), cell(series, "without", row))


def measured_gains(run: Any, column: str = "with") -> list[float | None]:
    """Tokens per second with drafts over without, by batch."""
    series = run["rate_by_batch"]
    known = len(series["batch"]) if series is not None and "batch" in series else 0
    return [gain(run, row, column) for row in range(known)]


def predicted_gains(run: Any) -> list[float | None]:
    """The same ratio as the model predicts it, by batch."""
    series = run["rate_by_batch"]
    known = len(series["batch"]) if series is not None and "batch" in series else 0
    return [value(cell(series, "predicted", row)).middle for row in range(known)]


def batch_of_one(run: Any) -> dict[str, str]:
    """The speed-up at batch 1 on the copying tasks, its prediction and the goal."""
    series = run["rate_by_batch"]
    found = compare(
        cell(series, "with", 0), cell(series, "without", 0), "the engine with drafts",
        "the engine without", what="throughput", unit="tokens/s",
    )  # fmt: skip
    reached = gain(run)
    verdict = versus_prediction(cell(series, "predicted", 0), reached, "×")
    met = goal_sentence(
        reached, f"{COPYING_GOAL:.0f} times", reached is not None and reached >= COPYING_GOAL
    )
    text = f"{found.sentence} On the ratio: {verdict}.{met}"
    return {"gain_finding": of_record(run, text, under_table=True)}


def crossings(run: Any) -> tuple[int | None, int | None, Sequence[int]]:
    """(predicted, measured, batches): the places in the sweep from which on drafts lose.

    A place is len(batches) where they win at every batch, and None where nothing was measured.
    """
    series = run["rate_by_batch"]
    batches = list(series["batch"]) if series is not None and "batch" in series else []
    places = []
    for ratios in (predicted_gains(run), measured_gains(run)):
        if not any(ratio is not None for ratio in ratios):
            places.append(None)
            continue
        found = crossover(batches, ratios)
        places.append(len(batches) if found is None else batches.index(found))
    return places[0], places[1], batches


def place_in_words(place: int, batches: Sequence[int]) -> str:
    """A place in the sweep, from `crossings`, as the words after "drafts lose"."""
    return (
        f"from batch {batches[place]} on"
        if place < len(batches)
        else f"at no batch up to {batches[-1]}"
    )


def crossing(run: Any) -> dict[str, str]:
    """The batch from which on drafts lose, predicted and measured, and the goal for the two."""
    predicted, measured, batches = crossings(run)
    if predicted is None or measured is None:
        return {"crossover_finding": missing("the batch from which on drafts lose").sentence}

    near = abs(predicted - measured) <= 1
    text = f"The prediction is that drafts lose {place_in_words(predicted, batches)}. "
    text += f"Measured: {place_in_words(measured, batches)}."
    series = run["rate_by_batch"]
    open_ = [
        f"{batches[row]}"
        for row in (measured - 1, measured)
        if 0 <= row < len(batches)
        and value(cell(series, "with", row)).overlaps(value(cell(series, "without", row)))
    ]
    if open_:
        text += (
            f" At batch {listed(open_)} the repeats with and without drafts overlap, so the "
            "measured place is uncertain."
        )
    text += goal_sentence(1.0, "that the two are at most one point of the sweep apart", near)
    return {"crossover_finding": of_record(run, text)}


def adaptive(run: Any) -> dict[str, str]:
    """What adaptation gives at the largest batch, and at which batches it gives less than a fixed number of drafts."""
    largest = measured_gains(run, "adaptive")
    text = missing("adaptation at the largest batch").sentence
    if largest and largest[-1] is not None:
        fixed = gain(run, -1)
        beside = "" if fixed is None else f"; without adaptation it is {percent(fixed)}"
        batch = run["rate_by_batch"]["batch"][-1]
        text = (
            f"At batch {batch} of the copying tasks the engine that adapts has "
            f"{percent(largest[-1])} of the throughput without drafts{beside}."
        )
    return {"adaptive_finding": of_record(run, text + _behind(run))}


def _behind(run: Any) -> str:
    """The batches at which adaptation is slower than always the most drafts, by more than the repeats differ."""
    series = run["rate_by_batch"]
    said = []
    for row in range(len(measured_gains(run))):
        pair = [value(cell(series, name, row)) for name in ("adaptive", "with")]
        ratios = [gain(run, row, name) for name in ("adaptive", "with")]
        if None in ratios:
            continue
        few, most = pair
        spread = max(few.spread or 0.0, most.spread or 0.0)
        if few.overlaps(most) or most.middle - few.middle <= max(spread, _SAME) * most.middle:
            continue
        both = " against ".join(f"{ratio:.2f}" for ratio in ratios)
        said.append(f"batch {series['batch'][row]} ({both} times the throughput without drafts)")
    if not said:
        return ""
    return f" It is slower than always the most drafts at {listed(said)}."


def random_text(run: Any) -> dict[str, str]:
    """What drafts cost on random text, with adaptation and without, and the goal."""
    series = run["random_text"]
    without = cell_of(series, "no drafts", "tok_s")
    off = over(cell_of(series, "always", "tok_s"), without)
    on = over(cell_of(series, "adaptive", "tok_s"), without)
    text = missing("random text").sentence
    if on is not None:
        spread = max(
            value(cell_of(series, name, "tok_s")).spread or 0.0
            for name in ("no drafts", "adaptive")
        )
        text = f"On random text the engine that adapts has {percent(on)} of the throughput without "
        text += "drafts" + ("." if off is None else f"; without adaptation it is {percent(off)}.")
        drafted = [
            value(cell_of(series, name, "drafted")).middle for name in ("adaptive", "always")
        ]
        if None not in drafted and min(drafted) >= 0:
            few, many = (f"{round(n):,}" for n in drafted)
            text += f" It verifies {few} drafts there; without adaptation these are {many}."
        text += goal_sentence(on, f"at least {percent(RANDOM_GOAL)}", on >= RANDOM_GOAL)
        if spread > 1 - RANDOM_GOAL:
            text += (
                f" The repeats differ by {percent(spread)}, more than the loss of "
                f"{percent(1 - RANDOM_GOAL)} that the goal allows, so another run may say "
                "otherwise."
            )
    return {"random_finding": of_record(run, text, under_table=True)}
