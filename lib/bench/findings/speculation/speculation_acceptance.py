"""What decides whether drafts pay: the cost of more rows, and how often drafts are right.

Each function takes a run and returns sentences of chapter 10.

Introduced in chapter 10.
"""

from typing import Any

from lib.bench.findings.speculation.speculation_rows import known_cells
from lib.bench.findings.values import cell, number, over, percent, times, value
from lib.bench.findings.vocabulary import ABOUT, missing

COPYING = ("editing", "quoting", "code", "JSON")


def rows(run: Any) -> dict[str, str]:
    """How much longer a step of more rows takes than one of one row."""
    series = run["step_by_rows"]
    text = missing("the time of a step by its rows").sentence
    if series is not None and "rows" in series:
        longer = {
            n: ratio
            for i, n in enumerate(series["rows"])
            if n in (4, 8, 32) and (ratio := over(cell(series, "step", i), cell(series, "step", 0)))
        }
        listed = [f"a step of {n} rows takes {times(ratio)} as long" for n, ratio in longer.items()]
        if listed:
            text = f"Compared with a step of one row, {', '.join(listed)}."
    return {"rows_finding": text}


def acceptance(run: Any) -> dict[str, str]:
    """Tokens per step of each kind of text, counted."""
    series = run["acceptance"]
    tokens = known_cells(series, "tokens_per_step")
    copying = {name: x for name, x in tokens.items() if name in COPYING}
    text = missing("the tokens per step").sentence
    if copying:
        best, least = max(copying, key=copying.get), min(copying, key=copying.get)
        low, high = number(copying[least]), number(copying[best])
        text = (
            f"On the copying tasks a step gives between {low} tokens ({least}) and {high} ({best})."
        )
        if low == high:
            text = f"On each of the copying tasks a step gives {low} tokens."
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
