"""Answers with masks and without: valid ones, free whitespace, and tokens that need no model.

Each function takes a run; most return sentences of chapter 12.

Introduced in chapter 12.
"""

from typing import Any

from lib.bench.findings.structured_output.mask_rows import number_at, row_of
from lib.bench.findings.values import percent
from lib.bench.findings.vocabulary import Finding, missing, share
from lib.bench.records.series import Series


def asking(run: Any) -> dict[str, str]:
    """The sentences under the table of answers, asked for and constrained."""
    series = run["asking"]
    rows = range(len(series["how"])) if series is not None and "how" in series else ()
    free = [r for r in rows if not str(series["how"][r]).startswith("mask")]
    bound = [r for r in rows if r not in free]
    return {"asking_finding": _asked(series, free), "masked_finding": _masked(series, bound)}


def _sums(series: Series | None, rows: list[int], *columns: str) -> list[float] | None:
    """Sums over the rows; None where a number is missing or negative, or where there are no answers."""
    found = [[number_at(series, column, row) for row in rows] for column in columns]
    if not rows or any(n is None or n < 0 for numbers in found for n in numbers):
        return None
    sums = [sum(numbers) for numbers in found]
    return sums if sums[0] else None


def _asked(series: Series | None, rows: list[int]) -> str:
    sums = _sums(series, rows, "answers", "json", "inside", "valid")
    if sums is None:
        return missing("the share of valid answers").sentence
    answers, parsed, inside, valid = sums
    plain = f"{_count(parsed)} {'is' if parsed <= 1 else 'are'} JSON without other text"
    right = f"{_count(valid)} {'has' if valid <= 1 else 'have'} the fields and types asked for"
    return (
        f"Of {answers:,.0f} answers, {plain} ({percent(parsed / answers)}), in {_count(inside)} some "
        "JSON can be found between the first brace and the last, and "
        f"{right} ({percent(valid / answers)})."
    )


def _count(n: float) -> str:
    return f"{n:,.0f}" if n else "none"


def valid_share(run: Any) -> float | None:
    """Valid answers over answers that ended with `stop`, of all that had a mask."""
    series = run["asking"]
    rows = range(len(series["how"])) if series is not None and "how" in series else ()
    bound = [r for r in rows if str(series["how"][r]).startswith("mask")]
    sums = _sums(series, bound, "stopped", "valid")
    return None if sums is None else sums[1] / sums[0]


def all_valid(run: Any) -> Finding:
    """Whether all complete answers with masks are valid. kind: "all", "failed" or "missing"."""
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
        wrong = f"{stopped - valid:,.0f} of {stopped:,.0f} complete answers"
        return f"With masks {wrong} are not valid, which is an error in the engine."
    if not stopped:
        return (
            f"With masks none of {answers:,.0f} answers ended before the limit of tokens, so this "
            "run cannot tell whether complete answers are valid."
        )
    text = f"With masks all {stopped:,.0f} answers that end with the reason stop are valid."
    if stopped == 1:
        text = "With masks the one answer that ends with the reason stop is valid."
    if stopped < answers:
        cut = f"{answers - stopped:,.0f} of {answers:,.0f}"
        text += f" The other {cut} reached the limit of tokens first."
    return text


def whitespace(run: Any) -> dict[str, str]:
    """The sentence on free whitespace: answers that end, and the part of their characters that is whitespace."""
    series = run["whitespace"]
    parts = []
    for kind in ("one space", "free"):
        row = row_of(series, "whitespace", kind)
        numbers = [number_at(series, c, row) for c in ("answers", "stopped", "characters", "white")]
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
    tokens, single, certain = (number_at(series, c, 0) for c in ("tokens", "one_token", "one_byte"))
    if None in (tokens, single, certain) or tokens <= 0 or min(single, certain) < 0:
        return {"forced_finding": missing("the share of forced tokens").sentence}
    text = (
        f"There are {tokens:,.0f} tokens. The share for which the mask allowed only one token: "
        f"{share(single, tokens)}. The share for which only one next byte was possible: "
        f"{share(certain, tokens)}."
    )
    if certain > single:
        text += (
            " The second is larger because of the spellings: one certain byte can begin several "
            "tokens."
        )
    return {"forced_finding": text}
