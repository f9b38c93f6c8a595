"""What a mask costs: its time by vocabulary, and a step with masks against one without.

Each function takes a run; most return sentences of chapter 12.

Introduced in chapter 12.
"""

from dataclasses import replace
from typing import Any

from lib.bench.findings.run_notes import of_record
from lib.bench.findings.structured_output.mask_rows import row_of
from lib.bench.findings.values import cell, percent, quantity, times, value
from lib.bench.findings.vocabulary import Finding, compare, missing, versus_prediction

STEP_GOAL, GOAL_BATCH = 0.05, 16  # known masks may add this share to a step of this batch
AT_MOST = f"at most {1 + STEP_GOAL:g}"  # the prediction, as the table at the chapter's end names it
KINDS = {
    "few states": "an automaton of few states",
    "new states": "an automaton that counts",
    "schema": "a JSON schema",
}
WITH_GOAL = ("few states",)  # the kinds whose masks are known already, for which the goal is set


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
        "walk_finding": of_record(
            run, f"{found.sentence} Time for the largest vocabulary: {verdict}."
        ),
        "kept_finding": kept,
    }


def cost(run: Any, kind: str) -> Finding:
    """What a mask of this kind adds to a step of GOAL_BATCH sequences, as a share of the step without.

    kind of the finding: "missing", "cannot tell" where the samples differ by more than STEP_GOAL
    and share a range with those of a step without masks, else "number". A kind of WITH_GOAL is
    "within" or "above" the goal, and "cannot tell" also where its samples lie on both sides of it.
    """
    series = run["step_by_batch"]
    row = row_of(series, "batch", GOAL_BATCH)
    free, bound = (value(None if row is None else cell(series, c, row)) for c in ("free", kind))
    name = KINDS[kind]
    if not (free.known and bound.known and free.middle > 0 and bound.middle > 0):
        return missing(f"the step with {name} at batch {GOAL_BATCH}")
    ratio = bound.middle / free.middle
    spread = max(v.spread or 0.0 for v in (free, bound))
    both = f"{quantity(bound.middle, 's')} against {quantity(free.middle, 's')}"
    more = "longer" if ratio >= 1 else "less"
    change = f"{100 * abs(ratio - 1):.1f} % {more} ({both})"
    said = f"with {name}, a step of {GOAL_BATCH} sequences takes {change}"
    limit, unsure = (1 + STEP_GOAL) * free.middle, ""
    if bound.overlaps(free):
        unsure = "whether masks make it longer"
    elif kind in WITH_GOAL and bound.count > 1 and bound.low <= limit <= bound.high:
        unsure = f"whether that is within the goal of {percent(STEP_GOAL)}"
    if unsure and spread > STEP_GOAL:
        text = f"{said}; steps of one kind differ by {percent(spread)}, so this run cannot tell {unsure}"
        return Finding(text, "cannot tell", ratio)
    if kind not in WITH_GOAL:
        return Finding(said, "number", ratio, (ratio > 1) - (ratio < 1))
    if ratio - 1 <= STEP_GOAL:
        return Finding(f"{said}, within the goal of {percent(STEP_GOAL)}", "within", ratio)
    return Finding(f"{said}, more than the goal of {percent(STEP_GOAL)}", "above", ratio, 1)


def judged(run: Any, kind: str) -> Finding:
    """The verdict of `cost` for the table: its ratio, and AT_MOST as its kind where it is met."""
    found = cost(run, kind)
    if found.ratio is None:
        return found
    met = AT_MOST if found.kind == "within" else found.kind
    return replace(found, text=f"{found.ratio:.2f}", kind=met)


def hidden(run: Any, kind: str) -> Finding:
    """Whether computing the masks while the model runs makes the step shorter than computing them afterwards."""
    series = run["step_by_batch"]
    row = row_of(series, "batch", GOAL_BATCH)
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
        "few_finding": of_record(run, cost(run, "few states").sentence),
        "new_finding": cost(run, "new states").sentence,
        "schema_finding": cost(run, "schema").sentence,
        "hidden_finding": " ".join(hidden(run, k).sentence for k in ("new states", "schema")),
    }
