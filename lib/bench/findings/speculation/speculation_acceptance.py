"""What decides whether drafts pay: the cost of more rows, and how often drafts are right.

Each function but `loops` takes a run; all return sentences of chapter 10.

Introduced in chapter 10.
"""

from collections.abc import Sequence
from typing import Any

from lib.bench.findings.run_notes import of_record
from lib.bench.findings.speculation.speculation_rows import known_cells
from lib.bench.findings.values import cell, listed, number, over, percent, quantity, times, value
from lib.bench.findings.vocabulary import ABOUT, missing, size_of
from lib.bench.records.series import Series

COPYING = ("editing", "quoting", "code", "JSON")


def rows(run: Any) -> dict[str, str]:
    """How much longer a step of more rows takes, and the time per row of the largest steps."""
    series = run["step_by_rows"]
    text, known = missing("the time of a step by its rows").sentence, []
    if series is not None and "rows" in series:
        known = series["rows"]
        chosen = [n for n in known if n in (4, 8, 32)] or [n for n in known if n > 1][:3]
        longer = {
            n: ratio
            for i, n in enumerate(known)
            if n in chosen and (ratio := over(cell(series, "step", i), cell(series, "step", 0)))
        }
        said = [f"a step of {n} rows takes {times(ratio)} as long" for n, ratio in longer.items()]
        if said:
            text = f"Compared with a step of one row, {listed(said)}."
    return {
        "rows_finding": of_record(run, text, under_table=True),
        "per_row_finding": of_record(run, _per_row(series, known)),
    }


def _per_row(series: Series | None, known: Sequence[int]) -> str:
    """Whether the time per row is the same at the two largest numbers of rows."""
    found = [
        (n, per_row)
        for i, n in enumerate(known)
        if (per_row := over(cell(series, "step", i), n)) is not None
    ][-2:]
    if len(found) < 2:
        return missing("the time per row").sentence
    (fewer, before), (more, after) = found
    both = f"({quantity(before, 's')} and {quantity(after, 's')})"
    kind = size_of(after / before)
    if kind == "about":
        return f"The time per row is about the same in steps of {fewer} and of {more} rows {both}."
    word = "rises" if after > before else "still falls"
    return f"Between steps of {fewer} and of {more} rows the time per row {word} {both}."


def acceptance(run: Any) -> dict[str, str]:
    """Tokens per step of each kind of text, counted."""
    series = run["acceptance"]
    tokens = known_cells(series, "tokens_per_step")
    copying = {name: x for name, x in tokens.items() if name in COPYING}
    text = missing("the tokens per step").sentence
    if copying:
        low, high = number(min(copying.values())), number(max(copying.values()))
        least, best = (
            listed([name for name, x in copying.items() if number(x) == end]) for end in (low, high)
        )
        text = (
            f"On the copying tasks a step gives between {low} tokens ({least}) and {high} ({best})."
        )
        if low == high:
            tokens_said = "1 token" if low == "1" else f"{low} tokens"
            text = f"On each of the copying tasks a step gives {tokens_said}."
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


def loops(greedy: float, sampled: float) -> dict[str, str]:
    """Tokens per step after random tokens: of greedy text, which may loop, and of sampled text."""
    text = (
        f"After random tokens, greedy text gives {greedy:.2f} tokens per step and sampled text "
        f"{sampled:.2f}"
    )
    if greedy <= sampled * (1 + ABOUT):
        text += ": here the greedy text is hardly easier to guess"
    return {"loops_finding": f"{text}."}
