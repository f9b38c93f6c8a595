"""The sentences of chapter 4 about the gather: what the copy adds to a step, measured and by bytes.

The first model compared two bounds; the second takes the contiguous step as measured and adds the
extra bytes.

Introduced in chapter 4.
"""

from dataclasses import replace
from typing import Any

from lib.bench.findings.gates import stand_in_closed
from lib.bench.findings.paged_cache.gather_causes import (
    attention,
    attention_bandwidth,
    copy_rate,
    dilution,
    fresh_cause,
    fresh_pages,
    part_above_whole,
)
from lib.bench.findings.paged_cache.gather_rows import (
    BY_BATCH,
    BY_CONTEXT,
    extra,
    overhead,
    place,
    ratio,
)
from lib.bench.findings.predictions import Prediction
from lib.bench.findings.values import Measured, Value, cell, percent, quantity, value
from lib.bench.findings.vocabulary import compare, missing, uncapital, versus_prediction
from lib.bench.records.series import Series

EXPERIMENT = "cost of the gather"  # the name of its gate


def gather(run: Any) -> dict[str, str]:
    """The sentences under the figure of the gather; none of them judges where the recorded run's own gate was closed."""
    by_batch, by_context = run[BY_BATCH], run[BY_CONTEXT]
    closed = stand_in_closed(run, EXPERIMENT)
    own = f" The recorded run failed its own check ({'; '.join(closed)})." if closed else ""
    return {
        "overhead_finding": _overheads(by_batch, by_context, bool(closed)) + own,
        "dilution_finding": dilution(by_context, judged=not closed).sentence,
        "extra_finding": _extras(by_batch, by_context, bool(closed)),
        "broke_finding": _broke(by_context, bool(closed)),
        "faults_finding": fresh_pages(by_batch, by_context),
        "attention_finding": f"{attention(by_batch, by_context)}{part_above_whole(by_batch, by_context)}",
        "copy_finding": copy_rate(run),
        "transformers_finding": _transformers(by_batch),
    }


def _overheads(by_batch: Series | None, by_context: Series | None, closed: bool) -> str:
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
        said.append(f"at {place(series, row, axis)}, {got:.2f} (predicted {1 + predicted:.2f})")
    predicted, measured = overhead(by_context, -1)
    found = versus_prediction(predicted, measured, "")
    got = value(measured).middle
    change = f"adds {percent(got)} to" if got >= 0 else f"takes {percent(-got)} from"
    verdict = "this run cannot tell" if closed else found.verdict
    return (
        f"The time of a gathered step over that of a contiguous one is, {'; '.join(said)}. The gather {change} a step "
        f"with the longest context, where {percent(predicted)} was predicted: {verdict}."
    )


def _extras(by_batch: Series | None, by_context: Series | None, closed: bool) -> str:
    """The corrected model: seconds, not ratios."""
    said = []
    for series, axis in ((by_batch, "batch"), (by_context, "context")):
        predicted, measured = extra(series, -1)
        got = value(measured).middle
        if predicted is None or got is None:
            return missing("the time that the gather adds").sentence
        found = versus_prediction(predicted, measured)
        verdict = found.verdict
        if closed:
            verdict = "this run cannot tell"
        elif found.kind == "cannot tell":
            verdict = "this run cannot tell: the turns spread too widely"
        elif got <= 0:
            verdict = "the prediction failed"
        change = f"adds {quantity(got, 's')}" if got >= 0 else f"saves {quantity(-got, 's')}"
        said.append(
            f"{change} at {place(series, -1, axis)}, where the prediction was "
            f"{quantity(predicted, 's')} ({verdict})"
        )
    return f"The gather {'; it '.join(said)}."


def _broke(series: Series | None, closed: bool) -> str:
    """What became of the first model, for the list of what broke."""
    said = "The first model divided the bound of a gathered step by that of a contiguous one"
    predicted, measured = overhead(series, -1)
    if predicted is None or measured is None:
        return f"{said}; {missing('whether that holds')}."
    found = versus_prediction(predicted, measured, "")
    if closed or found.kind == "cannot tell":
        return f"{said}; whether that holds, this run cannot tell."
    cause = dilution(series)
    if found.kind == "about" and cause.kind == "about":
        return f"{said}, and in this run that holds, where the rest of the step is near its bound."
    if found.kind == "about":
        return f"{said}, and in this run the two agree. {cause.sentence} So the time that was added is as far from its bytes."
    got = value(measured).middle
    change = f"{percent(abs(got))} {'more' if got >= 0 else 'less'}"
    said += (
        f", and predicted {percent(predicted)} more time for the longest context; it was {change}."
    )
    return f"{said} {cause.sentence}" if cause.kind == "slow" else said


def _transformers(series: Series | None) -> str:
    pairs = [
        (cell(series, "transformers", row), cell(series, "contiguous", row)) for row in (0, -1)
    ]
    names = ("the dynamic cache of transformers", "the contiguous step")
    short, long = (compare(a, b, *names) for a, b in pairs)
    if "missing" in (short.kind, long.kind):
        return missing("the step of transformers").sentence
    return f"At {place(series, 0, 'batch')}, {short}; at {place(series, -1, 'batch')}, {long}."


def predictions(run: Any) -> list[Prediction]:
    """The gather's rows in the chapter's table: the first model, and the corrected one."""
    by_batch, by_context = run[BY_BATCH], run[BY_CONTEXT]
    closed = bool(stand_in_closed(run, EXPERIMENT))
    predicted, measured = overhead(by_context, -1)
    cause = dilution(by_context)
    first = Prediction(
        "part that the gather adds to a step, longest context, from the two bounds",
        predicted and 100 * predicted, _percent(measured),
        "", "%",
    )  # fmt: skip
    why = uncapital(cause.text) if cause.kind == "slow" else ""
    rows = [_with(first, why, closed)]
    for series, name in ((by_batch, "largest batch"), (by_context, "longest context")):
        predicted, measured = extra(series, -1)
        row = Prediction(
            f"time that the gather adds, {name}, from its extra bytes", predicted, measured
        )
        rows.append(_with(row, fresh_cause(series), closed))
    alone = ratio(by_batch, "paged_attention", "contiguous_attention", -1)
    part = attention_bandwidth(by_batch)
    slow = part is not None and part < 0.5
    why = (
        f"over slots it reads at {percent(part)} of the bandwidth: bytes do not bound it"
        if slow
        else ""
    )
    row = Prediction(
        "attention alone, gathered over slots, largest batch, from the bytes", 3.0, alone, "", "×"
    )
    rows.append(_with(row, why, closed))
    return rows


def _percent(measured: Measured) -> Measured:
    found = value(measured)
    if not found.known:
        return None
    return Value(100 * found.middle, 100 * found.low, 100 * found.high, found.count)


def _with(prediction: Prediction, why: str, closed: bool) -> Prediction:
    """The prediction with its cause, beside a deviation only; `closed`: the run failed its own gate."""
    prediction = replace(prediction, undecided=closed)
    off = prediction.verdict == "the prediction failed" or prediction.verdict.startswith("a little")
    text = why if off else ""
    if prediction.verdict == "the prediction failed" and not text:
        text = "no cause was measured"
    return replace(prediction, why=text)
