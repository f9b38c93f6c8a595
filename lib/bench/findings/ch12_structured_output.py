"""The sentences of chapter 12 that depend on what was measured.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None where it has none.

Introduced in chapter 12.
"""

from dataclasses import replace
from typing import Any

from lib.bench.findings import realistic_step
from lib.bench.findings.predictions import Prediction
from lib.bench.findings.schema_suite import runs, suite
from lib.bench.findings.values import cell, percent, quantity, times, value
from lib.bench.findings.vocabulary import (
    Finding,
    compare,
    missing,
    share,
    versus_prediction,
)
from lib.bench.records.series import Series

STEP_GOAL, GOAL_BATCH = 0.05, 16  # masks may add this share to a step of this batch
ERRORS = 3  # standard errors by which a counted share may differ from the exact one
KINDS = {
    "few states": "an automaton of few states",
    "new states": "an automaton that counts",
    "schema": "a JSON schema",
}


def _row(series: Series | None, column: str, wanted: Any) -> int | None:
    """The row whose `column` is `wanted`; None where there is none."""
    names = series[column] if series is not None and column in series else []
    return names.index(wanted) if wanted in names else None


def _number(series: Series | None, column: str, row: int | None) -> float | None:
    return None if row is None else value(cell(series, column, row)).middle


def asking(run: Any) -> dict[str, str]:
    """The sentences under the table of answers, asked for and constrained."""
    series = run["asking"]
    rows = range(len(series["how"])) if series is not None and "how" in series else ()
    free = [r for r in rows if not str(series["how"][r]).startswith("mask")]
    bound = [r for r in rows if r not in free]
    return {"asking_finding": _asked(series, free), "masked_finding": _masked(series, bound)}


def _sums(series: Series | None, rows: list[int], *columns: str) -> list[float] | None:
    """Sums over the rows; None where a number is missing or negative, or where there are no answers."""
    found = [[_number(series, column, row) for row in rows] for column in columns]
    if not rows or any(n is None or n < 0 for numbers in found for n in numbers):
        return None
    sums = [sum(numbers) for numbers in found]
    return sums if sums[0] else None


def _asked(series: Series | None, rows: list[int]) -> str:
    sums = _sums(series, rows, "answers", "json", "inside", "valid")
    if sums is None:
        return missing("the share of valid answers").sentence
    answers, parsed, inside, valid = sums
    return (
        f"Of {answers:,.0f} answers, {parsed:,.0f} are JSON as they are ({percent(parsed / answers)}), in "
        f"{inside:,.0f} some JSON can be found between the first brace and the last, and "
        f"{valid:,.0f} ha{'s' if valid == 1 else 've'} the fields and types that were asked for ({percent(valid / answers)})."
    )


def valid_share(run: Any) -> float | None:
    """Valid answers over answers that ended with `stop`, of all that had a mask."""
    series = run["asking"]
    rows = range(len(series["how"])) if series is not None and "how" in series else ()
    bound = [r for r in rows if str(series["how"][r]).startswith("mask")]
    sums = _sums(series, bound, "stopped", "valid")
    return None if sums is None else sums[1] / sums[0]


def _all_valid(run: Any) -> Finding:
    found = valid_share(run)
    if found is None:
        return missing("the share of valid answers with masks")
    return Finding("all" if found == 1 else percent(found), "all" if found == 1 else "failed")


def _masked(series: Series | None, rows: list[int]) -> str:
    sums = _sums(series, rows, "answers", "stopped", "valid")
    if sums is None:
        return missing("the share of valid answers with masks").sentence
    answers, stopped, valid = sums
    if valid < stopped:
        return f"With masks {stopped - valid:,.0f} of {stopped:,.0f} complete answers are not valid, which is an error in the engine."
    text = f"With masks all {stopped:,.0f} answers that end with the reason stop are valid."
    if stopped < answers:
        text += f" The other {answers - stopped:,.0f} of {answers:,.0f} reached the limit of tokens first."
    return text


def walk(run: Any) -> dict[str, str]:
    """The sentences under the figure of a mask's time by vocabulary."""
    series = run["mask_time_by_vocabulary"]
    first, single = cell(series, "walk", -1), cell(series, "one_by_one", -1)
    found = compare(first, single, "walking the tree", "reading the tokens one by one")
    verdict = versus_prediction(cell(series, "predicted", -1), first, "s")
    again = value(cell(series, "again", -1)).middle
    middle = value(first).middle
    kept = missing("the time of a mask that was kept").sentence
    if again is not None and middle is not None and again > 0 and middle > 0:
        kept = f"A mask that was kept is found in {quantity(again, 's')}"
        kept += f"; computing it takes {times(middle / again)} as long." if middle > again else "."
    return {
        "walk_finding": f"{found.sentence} Time for the largest vocabulary: {verdict}.",
        "kept_finding": kept,
    }


def cost(run: Any, kind: str) -> Finding:
    """What a mask of this kind adds to a step of GOAL_BATCH sequences, as a share of the step without.

    kind of the finding: "within", "above", "cannot tell" (the samples differ by more than the cost) or "missing".
    """
    series = run["step_by_batch"]
    row = _row(series, "batch", GOAL_BATCH)
    free, bound = (value(None if row is None else cell(series, c, row)) for c in ("free", kind))
    name = KINDS[kind]
    if not (free.known and bound.known and free.middle > 0 and bound.middle > 0):
        return missing(f"the step with {name} at batch {GOAL_BATCH}")
    ratio = bound.middle / free.middle
    spread = max(v.spread or 0.0 for v in (free, bound))
    both = f"{quantity(bound.middle, 's')} against {quantity(free.middle, 's')}"
    more = "longer" if ratio >= 1 else "less"
    said = f"with {name}, a step of {GOAL_BATCH} sequences takes {100 * abs(ratio - 1):.1f} % {more} ({both})"
    if spread > STEP_GOAL and abs(ratio - 1) <= spread:
        text = f"{said}, less than the {percent(spread)} by which the steps of one kind differ, so this run cannot tell"
        return Finding(text, "cannot tell", ratio)
    if ratio - 1 <= STEP_GOAL:
        return Finding(f"{said}, within the goal of 5 %", "within", ratio)
    return Finding(f"{said}, more than the goal of 5 %", "above", ratio, 1)


def _over_free(run: Any, kind: str) -> list[float] | None:
    """Every sample of a step with masks over the median step without, at GOAL_BATCH."""
    series = run["step_by_batch"]
    row = _row(series, "batch", GOAL_BATCH)
    free, found = _number(series, "free", row), None if row is None else cell(series, kind, row)
    if not free or free < 0 or found is None:
        return None
    return [s / free for s in (found if isinstance(found, list) else [found])]


def hidden(run: Any, kind: str) -> Finding:
    """Whether computing the masks while the model runs makes the step shorter than computing them afterwards."""
    series = run["step_by_batch"]
    row = _row(series, "batch", GOAL_BATCH)
    name = KINDS[kind]
    if row is None:
        return missing(f"the overlap with {name}")
    beside, after = (cell(series, column, row) for column in (kind, f"{kind}, in turn"))
    found = compare(beside, after, "the step with masks beside the model", "the one with masks after it")  # fmt: skip
    if found.kind == "missing":
        return missing(f"the overlap with {name}")
    return replace(found, text=f"with {name}, {found.text}")


def steps(run: Any) -> dict[str, str]:
    """The sentences under the figure of steps by batch."""
    return {
        "few_finding": cost(run, "few states").sentence,
        "new_finding": cost(run, "new states").sentence,
        "schema_finding": cost(run, "schema").sentence,
        "hidden_finding": " ".join(hidden(run, k).sentence for k in ("new states", "schema")),
    }


def bias(run: Any) -> dict[str, str]:
    """The sentences under the table of exact shares: how far the mask moves them, and what was drawn."""
    series = run["answer_shares"]
    rows = len(series["text"]) if series is not None and "text" in series else 0
    found = [
        [_number(series, c, row) for c in ("conditional", "masked", "drawn")] for row in range(rows)
    ]
    if not found or any(p is None or p < 0 for row in found for p in row):
        text = missing("the shares of the answers").sentence
        return {"bias_finding": text, "drawn_finding": text}
    own, masked = ([row[i] for row in found] for i in (0, 1))
    best, likely = own.index(max(own)), masked.index(max(masked))
    distance = sum(abs(a - b) for a, b in zip(own, masked)) / 2
    names = [f"“{text}”" for text in series["text"]]
    if best == likely:
        text = f"Both distributions prefer {names[best]}, with {percent(own[best])} and {percent(masked[best])}."
    else:
        text = (
            f"Among its own valid answers the model prefers {names[best]} ({percent(own[best])}). With masks it prefers "
            f"{names[likely]} ({percent(masked[likely])}), which has {percent(own[likely])} of the valid answers."
        )
    text += f" The total variation distance is {distance:.2f}."
    said = f"Share of {names[likely]} in the answers that were drawn: {drawn(run)}."
    return {"bias_finding": text, "drawn_finding": said}


def drawn(run: Any) -> Finding:
    """Whether the most likely answer with masks is drawn as often as its exact share says.

    kind: "agrees" where the two differ by at most ERRORS standard errors of a share counted in so many draws,
    sqrt(p (1 - p) / draws); else "failed", or "missing".
    """
    series = run["answer_shares"]
    draws = (series.params or {}).get("draws") if series is not None else None
    rows = range(len(series["text"])) if series is not None and "text" in series else ()
    found = [[_number(series, c, row) for c in ("masked", "drawn")] for row in rows]
    if not draws or not found or any(p is None or not 0 <= p <= 1 for row in found for p in row):
        return missing("the shares of the answers that were drawn")
    exact, counted = max(found)
    allowed = ERRORS * (exact * (1 - exact) / draws) ** 0.5
    both = f"{percent(counted)} of {draws:,} draws, exact {percent(exact)}"
    if abs(counted - exact) <= allowed:
        text = f"{both}, a difference within {ERRORS} standard errors ({percent(allowed)})"
        return Finding(text, "agrees")
    text = f"{both}, a difference of more than {ERRORS} standard errors ({percent(allowed)})"
    return Finding(text, "failed")


def whitespace(run: Any) -> dict[str, str]:
    """The sentence on free whitespace: answers that end, and the part of their characters that is whitespace."""
    series = run["whitespace"]
    parts = []
    for kind in ("one space", "free"):
        row = _row(series, "whitespace", kind)
        numbers = [_number(series, c, row) for c in ("answers", "stopped", "characters", "white")]
        if None in numbers or numbers[0] <= 0 or numbers[2] <= 0:
            return {"whitespace_finding": missing("the effect of free whitespace").sentence}
        answers, stopped, characters, white = numbers
        name = "one space at fixed places" if kind == "one space" else "any whitespace"
        parts.append(
            f"with {name} {stopped:,.0f} of {answers:,.0f} answers end, and {percent(white / characters)} of their "
            "characters are whitespace"
        )
    text = "; ".join(parts)
    return {"whitespace_finding": text[0].upper() + text[1:] + "."}


def forced(run: Any) -> dict[str, str]:
    """The sentence on steps that need no model: one token is allowed, or the next byte is certain."""
    series = run["forced"]
    tokens, single, certain = (_number(series, c, 0) for c in ("tokens", "one_token", "one_byte"))
    if None in (tokens, single, certain) or tokens <= 0 or min(single, certain) < 0:
        return {"forced_finding": missing("the share of forced tokens").sentence}
    return {
        "forced_finding": f"There are {tokens:,.0f} tokens. The share for which the mask allowed only one token: "
        f"{share(single, tokens)}. The share for which only one next byte was possible: {share(certain, tokens)}."
    }


def predictions(run: Any) -> list[Prediction]:
    """The chapter's predictions, for the table at its end."""
    series = run["mask_time_by_vocabulary"]
    return [
        Prediction("texts that end with stop and are valid", "all", _all_valid(run)),
        Prediction(
            "first mask of a state, by counting look-ups",
            cell(series, "predicted", -1), cell(series, "walk", -1),
        ),
        Prediction(
            f"step with masks of few states over a step without, batch {GOAL_BATCH}",
            1 + STEP_GOAL, _over_free(run, "few states"), "", "", "at most",
        ),
        Prediction("draws of the most likely answer with masks, by its exact share", "agrees", drawn(run)),
    ]  # fmt: skip


def render(run: Any) -> dict[str, str]:
    """Every sentence of the chapter, by the name under which the chapter glues it."""
    measured: dict[str, str] = {}
    for part in (asking, walk, steps, bias, whitespace, forced):
        measured |= part(run)
    return measured | suite() | runs() | realistic_step.masks()
