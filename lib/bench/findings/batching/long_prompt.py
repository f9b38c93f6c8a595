"""The sentences of chapter 3 about a long prompt that arrives: in one step, or in chunks.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None
where it has none.

Introduced in chapter 3.
"""

from typing import Any

from lib.bench.findings.batching.batching_rows import BUDGET, over
from lib.bench.findings.values import cell, number, percent, positive, quantity, times, value
from lib.bench.findings.vocabulary import Finding, compare, missing, versus_prediction
from lib.bench.records.series import Series


def budget(run: Any) -> dict[str, str]:
    """A long prompt in one step, or in chunks."""
    series = run[BUDGET]
    gaps, firsts = (
        [cell(series, name, i) for i in (0, 1)] for name in ("longest_gap_s", "ttft_long_s")
    )
    gap, first = (compare(b, a, "chunks", "one step") for a, b in (gaps, firsts))
    if {gap.kind, first.kind} & {"missing", "undefined"}:
        text = missing("the long prompt").sentence
        names = ("gap_finding", "late_finding", "trade_finding", "chunk_finding")
        return dict.fromkeys(names, text)
    large, small = (number(value(cell(series, "budget", i)).middle or 0) for i in (0, 1))
    said = [
        f"{quantity(value(b).middle, 's')} with a budget of {small} tokens and {quantity(value(a).middle, 's')} with {large}"
        for a, b in (gaps, firsts)
    ]
    return {
        "gap_finding": f"The longest gap between two tokens of a running sequence was {said[0]}: {_factor(gap, 'shorter', 'longer')}.",
        "late_finding": f"The first token of the new request came after {said[1]}: "
        f"{_factor(first, 'earlier', 'later')}.",
        "trade_finding": _trade(gap, first),
        "chunk_finding": _chunks(run),
    }


def _factor(found: Finding, less: str, more: str) -> str:
    if found.kind == "cannot tell":
        return "this run cannot tell them apart"
    if not found.direction:
        return "about the same"
    factor = max(found.ratio, 1 / found.ratio)
    if found.kind == "little":
        return f"a little {less if found.direction < 0 else more} ({percent(factor - 1)})"
    return f"{less if found.direction < 0 else more} by a factor of {times(factor).removesuffix(' times')}"


def _trade(gap: Finding, first: Finding) -> str:
    if gap.kind == "cannot tell":
        return "This run cannot tell whether the chunks made the longest gap shorter."
    if gap.direction >= 0:
        return "In this run the chunks made no gap shorter, so the prediction failed."
    if first.kind == "cannot tell":
        return "This run cannot tell whether the chunks delayed the new request."
    if first.direction > 0:
        return "The budget trades one for the other."
    if first.direction < 0:
        return "In this run the chunks did not delay the new request."
    return "In this run the chunks did not delay the new request by more than 10 %."


def _chunks(run: Any) -> str:
    """The prediction in proportion to the tokens, its verdicts and its cause."""
    series = run[BUDGET]
    tokens, work = over(series, "budget", 0, 1), delay(series)
    shrunk, delayed = over(series, "longest_gap_s", 0, 1), over(series, "ttft_long_s", 1, 0)
    if None in (tokens, work, shrunk, delayed):
        return missing("the long prompt").sentence
    gap, first = versus_prediction(tokens, shrunk, "×"), versus_prediction(work, delayed, "×")
    said = (
        f"In proportion to the tokens of a step, the longest gap with the whole prompt would be {times(tokens)} that with "
        f"chunks; it was {times(shrunk)}: {gap.verdict}. With chunks the new request would wait {times(work)} as long for "
        f"its first token; it waited {times(delayed)} as long: {first.verdict}."
    )
    cause = chunk_cause(run)
    slow = gap.kind == "failed" or (first.kind == "failed" and first.direction > 0)
    if slow and cause.kind == "products":
        said += f" A chunk has fewer rows: {cause}."
    return said


def delay(series: Series | None) -> float | None:
    """Tokens computed until the long prompt is complete, in chunks over in one step.

    The chunks are the same prompt; the running sequences add a token each in every further step.
    """
    chunks = positive(cell(series, "prompt_steps", 1))
    if chunks is None or series is None:
        return None
    prompt, decoding = series.params["prompt"], series.params["decoding"]
    return (prompt + chunks * decoding) / (prompt + decoding)


def chunk_cause(run: Any) -> Finding:
    """Why a chunk takes more than its share of the whole prompt's time: the products alone. kind: "products" or "missing"."""
    series = run[BUDGET]
    alone = over(series, "products_s", 0, 1)
    tokens, got = over(series, "budget", 0, 1), over(series, "longest_gap_s", 0, 1)
    if None in (alone, tokens, got):
        return missing("the products of a chunk alone")
    large, small = (number(value(cell(series, "budget", i)).middle) for i in (0, 1))
    said = f"the products alone, with {large} rows in place of {small}, take {times(alone)} as long for {times(tokens)} the rows"
    fits = alone < tokens / 1.1 and got < tokens / 1.1
    return Finding(said, "products" if fits else "other", alone)
