"""The sentences of chapter 10 that depend on what was measured.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None
where the run has none of that name.

Introduced in chapter 10.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lib.bench.findings import realistic_step
from lib.bench.findings.predictions import Prediction
from lib.bench.findings.values import Measured, cell, number, percent, quantity, times, value
from lib.bench.findings.vocabulary import (
    ABOUT,
    MISSING,
    Finding,
    compare,
    missing,
    share,
    versus_prediction,
)
from lib.bench.measure.speculation_model import crossover
from lib.bench.records.series import Series

COPYING_GOAL, RANDOM_GOAL = 2.0, 0.97
COPYING = ("editing", "quoting", "code", "JSON")


def _over(a: Measured, b: Measured) -> float | None:
    """The ratio of two middles; None where one is missing or not above zero."""
    x, y = value(a).middle, value(b).middle
    return x / y if x and y and x > 0 and y > 0 else None


def _row(series: Series | None, name: str) -> int | None:
    """The row whose first column is `name`; None where there is none."""
    names = next(iter(series.columns.values()), []) if series is not None else []
    return names.index(name) if name in names else None


def _cell(series: Series | None, name: str, column: str) -> Measured:
    row = _row(series, name)
    return None if row is None else cell(series, column, row)


def _known(series: Series | None, column: str) -> dict[str, float]:
    """The positive middles of a column, by the name in the first column."""
    names = next(iter(series.columns.values()), []) if series is not None else []
    found = {name: value(cell(series, column, row)).middle for row, name in enumerate(names)}
    return {name: x for name, x in found.items() if x is not None and x > 0}


def rows(run: Any) -> dict[str, str]:
    """How much longer a step of more rows takes than one of one row."""
    series = run["step_by_rows"]
    text = missing("the time of a step by its rows").sentence
    if series is not None and "rows" in series:
        longer = {
            n: ratio
            for i, n in enumerate(series["rows"])
            if n in (4, 8, 32)
            and (ratio := _over(cell(series, "step", i), cell(series, "step", 0)))
        }
        listed = [f"a step of {n} rows takes {times(ratio)} as long" for n, ratio in longer.items()]
        if listed:
            text = f"Compared with a step of one row, {', '.join(listed)}."
    return {"rows_finding": text}


def acceptance(run: Any) -> dict[str, str]:
    """Tokens per step of each kind of text, counted."""
    series = run["acceptance"]
    tokens = _known(series, "tokens_per_step")
    copying = {name: x for name, x in tokens.items() if name in COPYING}
    text = missing("the tokens per step").sentence
    if copying:
        best, least = max(copying, key=copying.get), min(copying, key=copying.get)
        text = (
            f"On the copying tasks a step gives between {number(copying[least])} tokens ({least}) "
            f"and {number(copying[best])} ({best})."
        )
        others = [f"{number(tokens[n])} on {n}" for n in ("chat", "random text") if n in tokens]
        if others:
            text += f" It gives {' and '.join(others)}."
    return {"acceptance_finding": text}


def by_position(run: Any) -> dict[str, str]:
    """Whether third drafts after two right ones are accepted more often than first ones.

    On the copying tasks.
    """
    series = run["acceptance_by_position"]
    first, later = (value(cell(series, "copying tasks", row)).middle for row in (0, 2))
    if first is None or later is None:
        return {"position_finding": missing("the acceptance by position").sentence}
    text = (
        f"On the copying tasks the first draft is right in {percent(first)} of all cases, and the "
        f"third in {percent(later)} of those in which two right ones come before it"
    )
    if later > first * (1 + ABOUT):
        text += ": a copy that has begun tends to go on"
    elif later < first * (1 - ABOUT):
        text += ": the longer a copy, the more often it ends"
    return {"position_finding": f"{text}."}


def gain(run: Any, row: int = 0, column: str = "with") -> float | None:
    """Tokens per second with drafts over without, at one row of the sweep of batches."""
    series = run["rate_by_batch"]
    return _over(cell(series, column, row), cell(series, "without", row))


def _gains(run: Any, column: str = "with") -> list[float | None]:
    series = run["rate_by_batch"]
    known = len(series["batch"]) if series is not None and "batch" in series else 0
    return [gain(run, row, column) for row in range(known)]


def _predicted(run: Any) -> list[float | None]:
    series = run["rate_by_batch"]
    known = len(series["batch"]) if series is not None and "batch" in series else 0
    return [value(cell(series, "predicted", row)).middle for row in range(known)]


def _goal(reached: float | None, goal: str, is_met: bool) -> str:
    if reached is None:
        return ""
    return f" The goal was {goal}; this run {'reaches' if is_met else 'does not reach'} it."


def batch_of_one(run: Any) -> dict[str, str]:
    """The speed-up at batch 1 on the copying tasks, its prediction and the goal."""
    series = run["rate_by_batch"]
    found = compare(
        cell(series, "with", 0), cell(series, "without", 0), "the engine with drafts",
        "the engine without", what="throughput", unit="tokens/s",
    )  # fmt: skip
    reached = gain(run)
    verdict = versus_prediction(cell(series, "predicted", 0), reached, "×")
    met = _goal(
        reached, f"{COPYING_GOAL:.0f} times", reached is not None and reached >= COPYING_GOAL
    )
    return {"gain_finding": f"{found.sentence} On the ratio: {verdict}.{met}"}


def crossings(run: Any) -> tuple[int | None, int | None, Sequence[int]]:
    """(predicted, measured, batches): the places in the sweep from which on drafts lose.

    A place is len(batches) where they win at every batch, and None where nothing was measured.
    """
    series = run["rate_by_batch"]
    batches = list(series["batch"]) if series is not None and "batch" in series else []
    places = []
    for ratios in (_predicted(run), _gains(run)):
        if not any(ratio is not None for ratio in ratios):
            places.append(None)
            continue
        found = crossover(batches, ratios)
        places.append(len(batches) if found is None else batches.index(found))
    return places[0], places[1], batches


def _said(place: int, batches: Sequence[int]) -> str:
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
    text = f"Predicted: drafts lose {_said(predicted, batches)}. "
    text += f"Measured: {_said(measured, batches)}."
    text += _goal(1.0, "that the two are at most one point of the sweep apart", near)
    return {"crossover_finding": text}


def adaptive(run: Any) -> dict[str, str]:
    """What adaptation gives at the largest batch."""
    largest = _gains(run, "adaptive")
    text = missing("adaptation at the largest batch").sentence
    if largest and largest[-1] is not None:
        fixed = gain(run, -1)
        beside = "" if fixed is None else f", against {times(fixed)} with a fixed number of drafts"
        batch = run["rate_by_batch"]["batch"][-1]
        text = (
            f"At batch {batch} of the copying tasks the engine that adapts has "
            f"{times(largest[-1])} the throughput of the engine without drafts{beside}."
        )
    return {"adaptive_finding": text}


def random_text(run: Any) -> dict[str, str]:
    """What drafts cost on random text, with adaptation and without, and the goal."""
    series = run["random_text"]
    without = _cell(series, "no drafts", "tok_s")
    off = _over(_cell(series, "always", "tok_s"), without)
    on = _over(_cell(series, "adaptive", "tok_s"), without)
    text = missing("random text").sentence
    if on is not None:
        spread = max(
            value(_cell(series, name, "tok_s")).spread or 0.0 for name in ("no drafts", "adaptive")
        )
        text = f"On random text the engine that adapts has {percent(on)} of the throughput without "
        text += "drafts" + ("." if off is None else f"; without adaptation it is {percent(off)}.")
        text += _goal(on, f"at least {percent(RANDOM_GOAL)}", on >= RANDOM_GOAL)
        if spread > 1 - RANDOM_GOAL:
            text += (
                f" The repeats differ by {percent(spread)}, more than the loss of "
                f"{percent(1 - RANDOM_GOAL)} that the goal allows."
            )
    return {"random_finding": text}


def early_exit(run: Any) -> dict[str, str]:
    """Which exits guess better than they cost."""
    series = run["early_exit"]
    points = []
    for row in range(len(series["layers"]) if series is not None and "layers" in series else 0):
        alpha, c = (value(cell(series, name, row)).middle for name in ("acceptance", "cost"))
        if alpha is not None and c is not None:
            points.append((series["layers"][row], alpha, c))
    text = missing("the acceptance of early exits").sentence
    if points:
        gaining = [str(layers) for layers, alpha, c in points if alpha > c]
        layers, alpha, c = max(points, key=lambda point: point[1] - point[2])
        closest = f"After {layers} layers α is {alpha:.2f} and c is {c:.2f}."
        text = (
            f"No exit of this model has an α above its c, so none is predicted to gain. {closest}"
        )
        if gaining:
            text = (
                f"α is above c after {', '.join(gaining)} layers, so these exits are predicted to "
                f"gain. {closest}"
            )
    return {"exit_finding": text}


def methods(run: Any) -> dict[str, str]:
    """Which way to draft is fastest at batch 1, and which are slower than no drafts."""
    series = run["methods"]
    rates = _known(series, "tok_s")
    drafted = {name: rate for name, rate in rates.items() if name != "no drafts"}
    if not drafted or "no drafts" not in rates:
        return {"methods_finding": missing("the ways to draft").sentence}
    samples = {name: value(_cell(series, name, "tok_s")) for name in rates}
    best = max(drafted, key=drafted.get)
    ratio = rates[best] / rates["no drafts"]
    if rivals := [n for n in drafted if n != best and samples[n].overlaps(samples[best])]:
        text = (
            f"This run cannot tell which is the fastest of {_quoted([best, *rivals])}; “{best}” has"
        )
    else:
        text = f"The fastest of these is “{best}”, with"
    text += f" {times(ratio)} the throughput without drafts."
    near = [name for name in drafted if samples[name].overlaps(samples["no drafts"])]
    losing = [name for name in drafted if name not in near and rates[name] < rates["no drafts"]]
    if losing:
        text += f" Slower than no drafts: {_quoted(losing)}."
    if near:
        text += (
            f" Whether drafts gain with {_quoted(near)} this run cannot tell: the repeats overlap."
        )
    return {"methods_finding": text}


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"“{name}”" for name in names)


def draft_model(run: Any) -> dict[str, str]:
    """What a small checkpoint gives as the draft of a large one."""
    series = run["draft_model"]
    found = _over(_cell(series, "draft model", "tok_s"), _cell(series, "no drafts", "tok_s"))
    accepted = value(_cell(series, "draft model", "acceptance")).middle
    if found is None or accepted is None:
        return {"draft_model_finding": missing("a draft model").sentence}
    text = f"With the small model as its draft the large one has {times(found)} the throughput"
    return {"draft_model_finding": f"{text}; {percent(accepted)} of the drafts are accepted."}


def lookup(run: Any) -> dict[str, str]:
    """The time of one n-gram look-up, as a share of a step of one row."""
    found = _over(cell(run["proposer"], "seconds", 0), cell(run["step_by_rows"], "step", 0))
    if found is None:
        return {"lookup_finding": missing("the time of a look-up").sentence}
    took = quantity(value(cell(run["proposer"], "seconds", 0)).middle, "s")
    return {
        "lookup_finding": f"This takes {took}, {share(found)} of the time of a step of one row."
    }


def predictions(run: Any) -> list[Prediction]:
    """The chapter's predictions, for the table at its end."""
    gains, foretold = _gains(run), _predicted(run)
    predicted, measured, batches = crossings(run)
    largest = f", at batch {batches[-1]}" if batches else ""
    tokens, counted = (
        _cell(run["acceptance"], "editing", name) for name in ("by_position", "tokens_per_step")
    )
    by_rate = Prediction(
        "tokens per step of the editing tasks, from the acceptance by position",
        tokens,
        counted,
        "",
        "",
    )
    made = value(_cell(run["acceptance"], "editing", "drafts_per_step")).middle
    asked = (run["acceptance"].params or {}).get("k") if run["acceptance"] is not None else None
    if by_rate.verdict not in ("as predicted", MISSING) and made and asked and made < asked:
        by_rate = replace(by_rate, why=f"a mean step has {number(made)} drafts, not {asked}")
    crossed, met = "a crossover", missing("the batch from which on drafts lose")
    if predicted is not None and measured is not None:
        crossed = _said(predicted, batches)
        met = Finding(
            _said(measured, batches), crossed if abs(predicted - measured) <= 1 else "far"
        )
    return [
        by_rate,
        Prediction("speed-up at batch 1", foretold[0] if foretold else None,
                   gains[0] if gains else None, "", "×"),
        Prediction(f"speed-up{largest}", foretold[-1] if foretold else None,
                   gains[-1] if gains else None, "", "×"),
        Prediction("where drafts lose, within one point of the sweep", crossed, met),
    ]  # fmt: skip


def render(run: Any) -> dict[str, str]:
    """Every sentence of the chapter, by the name under which the chapter glues it."""
    return (
        rows(run)
        | acceptance(run)
        | by_position(run)
        | batch_of_one(run)
        | crossing(run)
        | adaptive(run)
        | random_text(run)
        | early_exit(run)
        | methods(run)
        | draft_model(run)
        | lookup(run)
        | realistic_step.speculation()
    )
