"""Why the gather of chapter 4 costs more, or less, than its bytes say.

Causes are the rest of the step, fresh memory, attention alone, and the rate of the copies.

Introduced in chapter 4.
"""

from typing import Any

from lib.bench.findings.paged_cache.gather_rows import BY_CONTEXT, extra, middle, overhead, place
from lib.bench.findings.values import cell, column, percent, quantity, times, value
from lib.bench.findings.vocabulary import Finding, missing, share, versus_prediction
from lib.bench.records.series import Series

PAGE = 4096  # bytes


def dilution(series: Series | None, judged: bool = True) -> Finding:
    """Why the ratio of the bounds is no prediction of the ratio: the rest of the step lies above its own bound.

    judged: False leaves the explanation out, for a run from which no verdict may be drawn.
    """
    step, bound = middle(series, "contiguous", -1), middle(series, "bound_contiguous", -1)
    predicted, measured = overhead(series, -1)
    if None in (step, bound, predicted, measured):
        return missing("the contiguous step over its bound")
    said = f"The contiguous step itself takes {times(step / bound)} its bound"
    alone = middle(series, "contiguous_attention", -1)
    if alone:
        said += f", and attention is {share(alone, step)} of it"
    found = versus_prediction(predicted, measured, "")
    if step < bound / 1.1:
        return Finding(f"{said}: below its bound, so a ceiling was measured too low", "low")
    if not judged:
        return Finding(said, "other", step / bound)
    if step <= 1.25 * bound:
        if found.kind == "about":
            said += ": the rest of the step is near its bound, so the ratio of the bounds is a fair prediction"
        elif found.kind in ("little", "failed"):
            said += ", so the rest of the step does not explain the difference"
        return Finding(said, "about", step / bound)
    if found.kind in ("little", "failed") and value(measured).middle < predicted:
        text = f"{said}; the bytes of the copy are a smaller part of a step that is slow for other reasons than bytes"
        return Finding(text, "slow", step / bound)
    return Finding(said, "other", step / bound)


def fresh_pages(by_batch: Series | None, by_context: Series | None) -> str:
    """How much of the copies was fresh memory: page faults of one step against the pages of its copies."""
    said = []
    for series, axis in ((by_batch, "batch"), (by_context, "context")):
        copied = middle(series, "copied_bytes", -1)
        faults = value(cell(series, "page_faults", -1)).middle
        if copied is None or faults is None or faults < 0:
            return missing("how much of the copies is fresh memory").sentence
        said.append((place(series, -1, axis), min(1.0, faults * PAGE / copied)))
    if max(part for _, part in said) < 0.05:
        return "The copies were written to memory that the process held already: almost none of its pages was fresh."
    parts = " and ".join(f"{percent(part)} at {name}" for name, part in said)
    return (
        f"Of the pages of the copies, {parts} were fresh from the operating system, which clears "
        f"each page before it is used; a count of the bytes leaves out this work."
    )


def fresh_cause(series: Series | None) -> str:
    """The cause of a time above the bytes, where the copies were written to fresh memory."""
    copied, faults = (
        middle(series, "copied_bytes", -1),
        value(cell(series, "page_faults", -1)).middle,
    )
    predicted, measured = extra(series, -1)
    got = value(measured).middle
    if not copied or not faults or not predicted or got is None or got <= predicted:
        return ""
    found = share(min(faults * PAGE, copied), copied)
    return (
        f"{found} of the copies' pages were fresh memory, which is cleared first"
        if found.ratio > 0.1
        else ""
    )


def attention(by_batch: Series | None, by_context: Series | None) -> str:
    """Attention alone: the ratio against the three that bytes allow, and whether bytes bound it at all."""
    ratios = []
    for series in (by_batch, by_context):
        for row in range(len(column(series, "batch"))):
            low = middle(series, "contiguous_attention", row)
            high = middle(series, "paged_attention", row)
            if low and high:
                ratios.append(high / low)
    if not ratios:
        return missing("attention alone").sentence
    said = f"For attention alone the ratio runs from {min(ratios):.1f} to {max(ratios):.1f}; bytes alone would make it 3."
    part = attention_bandwidth(by_batch)
    if part is None:
        return said
    said += f" Over slots, at the largest batch, attention reads its keys and values at {percent(part)} of the bandwidth"
    if part < 0.5:
        return f"{said}: bytes are not what bounds it, so a ratio of bytes says little about it."
    if part > 1.1:
        return f"{said}: a part of them stays in the processor's caches, or the bandwidth was measured too low."
    return f"{said}."


def part_above_whole(by_batch: Series | None, by_context: Series | None) -> str:
    """Where the gather adds more to attention alone than to the step that holds it: why the two cannot be subtracted.

    Empty where it does not; begins with a space.
    """
    said = []
    for series, axis in ((by_batch, "batch"), (by_context, "context")):
        names = ("contiguous", "paged", "contiguous_attention", "paged_attention")
        times_ = [middle(series, name, -1) for name in names]
        if None in times_:
            continue
        slots, blocks, alone, gathered = times_
        part, whole = gathered - alone, blocks - slots
        if part > 0 and part > 1.1 * whole:
            grown = f"by {quantity(whole, 's')}" if whole > 0 else "by nothing"
            said.append(
                f"at {place(series, -1, axis)}, attention alone grows by {quantity(part, 's')} and the whole step {grown}"
            )
    if not said:
        return ""
    found = "; ".join(said)
    return (
        f" {found[:1].upper()}{found[1:]}. A part cannot add more than the whole. But attention alone is another job: all "
        "layers one after another, with nothing between them, so the processor's caches and the memory of the copies are in "
        "another state than inside a step. So each of the two is compared with its own run over slots, and they are not "
        "subtracted from each other."
    )


def attention_bandwidth(series: Series | None) -> float | None:
    """Rate at which attention alone reads keys and values, over the bandwidth; from the bounds, so in this run's terms."""
    alone, (added, _) = middle(series, "contiguous_attention", -1), extra(series, -1)
    return added / 2 / alone if alone and added and added > 0 else None


def copy_rate(run: Any) -> str:
    """The copies alone, read and written, against the bandwidth."""
    series = run[BY_CONTEXT]
    copied, seconds = middle(series, "copied_bytes", -1), middle(series, "copy", -1)
    roofline = run.roofline
    if not copied or not seconds or roofline is None:
        return missing("the rate of the copies").sentence
    part = 2 * copied / seconds / roofline.bandwidth
    said = (
        f"The copies of {quantity(copied, 'B')} at the longest context, timed alone, read and write at {percent(part)} of "
        "the bandwidth"
    )
    if part > 1.1:
        return f"{said}, which is possible only if a part of them stays in the processor's caches, or if the bandwidth was measured too low."
    return f"{said}."
