"""The sentences of chapter 4 about the gather: what the copy adds to a step, and what the bytes say that it adds.

The first model compared two bounds; the second takes the contiguous step as measured and adds the extra bytes.

Introduced in chapter 4.
"""

from typing import Any

from lib.bench.findings.predictions import Prediction
from lib.bench.findings.values import (
    Measured,
    cell,
    column,
    number,
    percent,
    quantity,
    times,
    value,
)
from lib.bench.findings.vocabulary import Finding, compare, missing, share, versus_prediction
from lib.bench.records.series import Series
from lib.models.checkpoint import GPT2_CONFIG

MODEL = GPT2_CONFIG
BY_BATCH, BY_CONTEXT = "decode_by_batch", "decode_by_context"
PAGE = 4096  # bytes


def _middle(series: Series | None, name: str, row: int) -> float | None:
    found = value(cell(series, name, row)).middle
    return found if found and found > 0 else None


def _turns(series: Series | None, above: str, below: str, row: int) -> list[tuple[float, float]]:
    """(above, below) of each turn, or of the medians where no turns were kept; empty where one was not measured."""
    a, b = cell(series, above, row), cell(series, below, row)
    if not (value(a).known and value(b).known):
        return []
    if value(a).count == value(b).count > 1:
        return list(zip(a, b))
    return [(value(a).middle, value(b).middle)]


def extra(series: Series | None, row: int) -> tuple[float | None, Measured]:
    """(predicted, measured) seconds that the gather adds to a step: 2 · M_KV / BW, and the difference of each turn."""
    low, high = (_middle(series, name, row) for name in ("bound_contiguous", "bound_paged"))
    predicted = high - low if low and high else None
    return predicted, [b - a for b, a in _turns(series, "paged", "contiguous", row)] or None


def overhead(series: Series | None, row: int) -> tuple[float | None, Measured]:
    """(predicted, measured) part of a contiguous step that the gather adds, as fractions: 0.53, and that of each turn."""
    low, high = (_middle(series, name, row) for name in ("bound_contiguous", "bound_paged"))
    predicted = high / low - 1 if low and high else None
    pairs = _turns(series, "paged", "contiguous", row)
    usable = bool(pairs) and min(min(pair) for pair in pairs) > 0
    return predicted, [b / a - 1 for b, a in pairs] if usable else None


def gather(run: Any) -> dict[str, str]:
    """The sentences under the figure of the gather."""
    by_batch, by_context = run[BY_BATCH], run[BY_CONTEXT]
    return {
        "overhead_finding": _overheads(by_batch, by_context),
        "dilution_finding": dilution(by_context).sentence,
        "extra_finding": _extras(by_batch, by_context),
        "broke_finding": _broke(by_context),
        "faults_finding": _faults(by_batch, by_context),
        "attention_finding": _attention(by_batch, by_context),
        "copy_finding": _copy(run),
        "transformers_finding": _transformers(by_batch),
    }


def curves(series: Series) -> dict[str, list[float]]:
    """Times over those of the contiguous cache, for the figure: measured, by the two bounds, and by the extra bytes."""
    slots, low, high = (series[n] for n in ("contiguous", "bound_contiguous", "bound_paged"))
    return {
        "gathered": [b / a for a, b in zip(slots, series["paged"])],
        "attention alone": [
            b / a for a, b in zip(series["contiguous_attention"], series["paged_attention"])
        ],
        "ratio of the bounds": [b / a for a, b in zip(low, high)],
        "measured slots + extra bytes": [1 + (b - a) / t for t, a, b in zip(slots, low, high)],
        "transformers": [b / a for a, b in zip(slots, series["transformers"])],
    }


def turns(series: Series) -> list[list[float]]:
    """The ratio of the gathered step in each turn, for the bars of the figure; an empty list where none were kept."""
    pairs = zip(series.samples.get("contiguous", []), series.samples.get("paged", []))
    return [[b / a for a, b in zip(slots, blocks)] for slots, blocks in pairs]


def _name(series: Series | None, row: int, axis: str) -> str:
    found = value(cell(series, axis, row)).middle
    return axis if found is None else f"{axis} {number(found)}"


def _overheads(by_batch: Series | None, by_context: Series | None) -> str:
    """Ratios of the whole step as measured and as the two bounds predict, with the verdict on what is added."""
    said = []
    for series, axis, row in (
        (by_batch, "batch", 0),
        (by_batch, "batch", -1),
        (by_context, "context", -1),
    ):
        predicted, measured = overhead(series, row)
        if predicted is None or measured is None:
            return missing("the cost of the gather in a whole step").sentence
        got = 1 + value(measured).middle
        said.append(f"at {_name(series, row, axis)}, {got:.2f} (predicted {1 + predicted:.2f})")
    predicted, measured = overhead(by_context, -1)
    found = versus_prediction(predicted, measured, "")
    got = value(measured).middle
    change = f"adds {percent(got)} to" if got >= 0 else f"takes {percent(-got)} from"
    return (
        f"The time of a gathered step over that of a contiguous one is, {'; '.join(said)}. The gather {change} a step "
        f"with the longest context, where {percent(predicted)} was predicted: {found.verdict}."
    )


def dilution(series: Series | None) -> Finding:
    """Why the ratio of the bounds is no prediction of the ratio: the rest of the step lies above its own bound."""
    step, bound = _middle(series, "contiguous", -1), _middle(series, "bound_contiguous", -1)
    predicted, measured = overhead(series, -1)
    if None in (step, bound, predicted, measured):
        return missing("the contiguous step over its bound")
    said = f"The contiguous step itself takes {times(step / bound)} its bound"
    alone = _middle(series, "contiguous_attention", -1)
    if alone:
        said += f", and attention is {share(alone, step)} of it"
    if step <= 1.25 * bound:
        return Finding(f"{said}, so that the ratio of the bounds is a fair prediction", "about")
    found = versus_prediction(predicted, measured, "")
    if found.kind in ("little", "failed") and value(measured).middle < predicted:
        text = f"{said}; the bytes of the copy are a smaller part of a step that is slow for other reasons than bytes"
        return Finding(text, "slow", step / bound)
    return Finding(said, "other", step / bound)


def _extras(by_batch: Series | None, by_context: Series | None) -> str:
    """The corrected model: seconds, not ratios."""
    said = []
    for series, axis in ((by_batch, "batch"), (by_context, "context")):
        predicted, measured = extra(series, -1)
        got = value(measured).middle
        if predicted is None or got is None:
            return missing("the time that the gather adds").sentence
        verdict = versus_prediction(predicted, measured).verdict
        if got <= 0:
            verdict = "the prediction failed"
        change = f"adds {quantity(got, 's')}" if got >= 0 else f"saves {quantity(-got, 's')}"
        said.append(
            f"{change} at {_name(series, -1, axis)}, where the prediction was "
            f"{quantity(predicted, 's')} ({verdict})"
        )
    return f"The gather {'; it '.join(said)}."


def _broke(series: Series | None) -> str:
    """What became of the first model, for the list of what broke."""
    said = "The first model divided the bound of a gathered step by that of a contiguous one"
    predicted, measured = overhead(series, -1)
    if predicted is None or measured is None:
        return f"{said}; {missing('whether that holds')}."
    found = versus_prediction(predicted, measured, "")
    if found.kind == "cannot tell":
        return f"{said}; whether that holds, this run cannot tell."
    if found.kind == "about":
        return f"{said}, and in this run that holds. It holds only where the rest of the step is at its bound."
    got = value(measured).middle
    change = f"{percent(abs(got))} {'more' if got >= 0 else 'less'}"
    said += (
        f", and predicted {percent(predicted)} more time for the longest context; it was {change}."
    )
    cause = dilution(series)
    return f"{said} {cause.sentence}" if cause.kind == "slow" else said


def _faults(by_batch: Series | None, by_context: Series | None) -> str:
    """How much of the copies was fresh memory: page faults of one step against the pages of its copies."""
    said = []
    for series, axis in ((by_batch, "batch"), (by_context, "context")):
        copied = _middle(series, "copied_bytes", -1)
        faults = value(cell(series, "page_faults", -1)).middle
        if copied is None or faults is None or faults < 0:
            return missing("how much of the copies is fresh memory").sentence
        said.append((_name(series, -1, axis), min(1.0, faults * PAGE / copied)))
    if max(part for _, part in said) < 0.05:
        return "The copies were written to memory that the process held already: almost none of its pages was fresh."
    parts = " and ".join(f"{percent(part)} at {name}" for name, part in said)
    return (
        f"Of the pages of the copies, {parts} were fresh from the operating system, which clears "
        f"each page before it is used; a count of the bytes leaves out this work."
    )


def _attention(by_batch: Series | None, by_context: Series | None) -> str:
    """Attention alone: the ratio against the three that bytes allow, and whether bytes bound it at all."""
    ratios = []
    for series in (by_batch, by_context):
        for row in range(len(column(series, "batch"))):
            low = _middle(series, "contiguous_attention", row)
            high = _middle(series, "paged_attention", row)
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
        return f"{said}: bytes are not what bounds it, and a ratio of bytes does not predict it."
    return f"{said}."


def attention_bandwidth(series: Series | None) -> float | None:
    """Rate at which attention alone reads keys and values, over the bandwidth; from the bounds, so in this run's terms."""
    alone, (added, _) = _middle(series, "contiguous_attention", -1), extra(series, -1)
    return added / 2 / alone if alone and added and added > 0 else None


def _copy(run: Any) -> str:
    """The copies alone, read and written, against the bandwidth."""
    series = run[BY_CONTEXT]
    copied, seconds = _middle(series, "copied_bytes", -1), _middle(series, "copy", -1)
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


def _transformers(series: Series | None) -> str:
    pairs = [
        (cell(series, "transformers", row), cell(series, "contiguous", row)) for row in (0, -1)
    ]
    names = ("the dynamic cache of transformers", "the contiguous step")
    short, long = (compare(a, b, *names) for a, b in pairs)
    if "missing" in (short.kind, long.kind):
        return missing("the step of transformers").sentence
    return f"At {_name(series, 0, 'batch')}, {short}; at {_name(series, -1, 'batch')}, {long}."


def predictions(run: Any) -> list[Prediction]:
    """The gather's rows in the chapter's table: the first model, and the corrected one."""
    by_batch, by_context = run[BY_BATCH], run[BY_CONTEXT]
    predicted, measured = overhead(by_context, -1)
    cause = dilution(by_context)
    first = Prediction(
        "part that the gather adds to a step, longest context, from the two bounds",
        predicted and 100 * predicted, measured and [100 * part for part in measured],
        "", "%",
    )  # fmt: skip
    why = cause.text[:1].lower() + cause.text[1:] if cause.kind == "slow" else ""
    rows = [_with(first, why)]
    for series, name in ((by_batch, "largest batch"), (by_context, "longest context")):
        predicted, measured = extra(series, -1)
        row = Prediction(
            f"time that the gather adds, {name}, from its extra bytes", predicted, measured
        )
        rows.append(_with(row, _fresh(series)))
    pairs = _turns(by_batch, "paged_attention", "contiguous_attention", -1)
    ratio = [b / a for b, a in pairs if a > 0] or None
    part = attention_bandwidth(by_batch)
    slow = part is not None and part < 0.5
    why = (
        f"over slots it reads at {percent(part)} of the bandwidth: bytes do not bound it"
        if slow
        else ""
    )
    rows.append(_with(Prediction("attention alone, gathered over slots, largest batch, from the bytes", 3.0, ratio, "", "×"), why))  # fmt: skip
    return rows


def _fresh(series: Series | None) -> str:
    """The cause of a time above the bytes, where the copies were written to fresh memory."""
    copied, faults = (
        _middle(series, "copied_bytes", -1),
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


def _with(prediction: Prediction, why: str) -> Prediction:
    """The prediction with its cause, beside a deviation only."""
    off = prediction.verdict == "the prediction failed" or prediction.verdict.startswith("a little")
    text = why if off else ""
    if prediction.verdict == "the prediction failed" and not text:
        text = "no cause was measured"
    return Prediction(prediction.claim, prediction.predicted, prediction.measured, text, prediction.unit, prediction.sense)  # fmt: skip
