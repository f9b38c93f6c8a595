"""The sentences of chapter 2 that depend on what was measured.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None where it has none.

Introduced in chapter 2.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lib.bench.findings import kv_floor, kv_throughput, kv_work, vllm_single
from lib.bench.findings.curves import growth, trend
from lib.bench.findings.kv_floor import floor_cause
from lib.bench.findings.kv_steps import (
    NAMES,
    STEPS,
    by_products,
    fit,
    foretold,
    halving,
    model_kind,
    overlaps,
    token_count,
)
from lib.bench.findings.kv_throughput import THROUGHPUT, gains, predicted_gains
from lib.bench.findings.kv_work import LATENCY, largest_family
from lib.bench.findings.predictions import Prediction
from lib.bench.findings.values import (
    Measured,
    column,
    ends,
    number,
    times,
    value,
)
from lib.bench.findings.vocabulary import (
    Finding,
    compare,
    missing,
    share,
    versus_bound,
    versus_prediction,
)
from lib.bench.measure import counts
from lib.bench.measure.step_model import first_length, rate_between
from lib.bench.records.files import reference
from lib.bench.records.published_vllm import published_vllm
from lib.bench.records.series import Series
from lib.models.checkpoint import GPT2_CONFIG

STAGES = ("the step with the cache", "the step without")


# The answer of SmolLM2, step by step.


def answer(run: Any) -> dict[str, str]:
    """Under the figure of the answer's steps."""
    series = run["answer_by_step"]
    kept, without = (column(series, name) for name in ("kv_cache", "no_cache"))
    half = len(kept) // 2
    names = ("the answer with the cache", "the one without")
    whole = compare(_summed(kept), _summed(without), *names)
    late = compare(_summed(kept[half:]), _summed(without[half:]), *names)
    first = compare(ends(series, "kv_cache")[0], ends(series, "no_cache")[0], *STAGES)
    said = missing("the time of the answer").sentence
    if whole.kind != "missing":
        said = f"{whole.sentence} In its second half, {late}."
    begin = missing("the first step").sentence
    if first.kind != "missing":
        begin = f"The first step has to compute the prompt in both cases: {first}."
    return {"answer_finding": said, "first_step_finding": begin}


def _summed(steps: Sequence[Measured]) -> Measured:
    """Seconds of several steps together, one value per repeat where all steps have the same repeats."""
    if not steps or not all(value(step).known for step in steps):
        return None
    if all(isinstance(step, list) for step in steps) and len({len(step) for step in steps}) == 1:
        return [sum(repeat) for repeat in zip(*steps)]
    return sum(value(step).middle for step in steps)


# One step against the length of the sequence.


def steps(run: Any) -> dict[str, str]:
    """Under the figure of one step by length."""
    series = run[STEPS]
    lengths = column(series, "length")
    slow, fast = ends(series, "no_cache"), ends(series, "kv_cache")
    shape = trend(lengths, column(series, "kv_cache"), "s", "{} tokens")
    grown = growth(*slow)
    if grown is None or shape.kind == "missing":
        first = missing("the growth of a step").sentence
    else:
        between = f"From {number(lengths[0])} to {number(lengths[-1])} tokens"
        first = (
            f"{between}, a step without a cache takes {times(grown)} as long; one with a cache {shape}: "
            f"{_flat_verdict(shape)}."
        )
    gain = compare(fast[1], slow[1], *STAGES)
    longest = f"At the longest sequence, {gain}."
    if gain.kind == "missing":
        longest = missing("the step at the longest sequence").sentence
    return {
        "growth_finding": first,
        "step_gain_finding": longest,
        "halved_finding": _halved(run),
        "step_bound_finding": _over_bounds(series),
        "fit_finding": _fitted(run),
        "step_products_finding": _products(series),
    }


def _flat_verdict(shape: Finding) -> str:
    judged = {"flat": "nearly flat, as predicted", "cannot tell": "this run cannot tell"}
    return judged.get(shape.kind, "the prediction of a flat curve failed")


def _halved(run: Any) -> str:
    found = halving(run[STEPS])
    if found.kind == "missing":
        return found.sentence
    said = f"Measured, the cache halves the time of a step {found}."
    models, bounds = foretold(run), _bounds_halve(run)
    if not models:
        return said
    ours, other = model_kind(run), "sum" if overlaps(run) else "larger"
    foreseen = {
        "by the bounds alone": bounds,
        f"by {NAMES[ours]}": models[ours].factor_at(2),
        f"by {NAMES[other]}": models[other].factor_at(2),
    }
    parts = [f"{token_count(p)} {name}{_missed(p, found)}" for name, p in foreseen.items()]
    return f"{said} Predicted were {', '.join(parts[:-1])}, and {parts[-1]}."


def _missed(predicted: float | None, found: Finding) -> str:
    """The verdict in brackets, for a length that was measured."""
    if found.kind != "at" or not predicted:
        return ""
    verdict = versus_prediction(predicted, found.ratio, "tokens")
    word = {
        "about": "as measured",
        "little": f"measured a little {'more' if verdict.direction > 0 else 'less'}",
    }
    return f" ({word.get(verdict.kind, 'which failed')})"


def _bounds_halve(run: Any) -> int | None:
    """Shortest sequence at which the bound without a cache is twice the bound with one."""
    roofline = run.roofline
    if roofline is None:
        return None

    def halved(n: int) -> bool:
        whole = counts.streamed_bytes(GPT2_CONFIG, "float32"), counts.prefill_flops(GPT2_CONFIG, n)
        kept = counts.step_bytes(GPT2_CONFIG, "float32", [n]), counts.decode_flops(GPT2_CONFIG, n)
        return roofline.time(*whole) >= 2 * roofline.time(*kept)

    return first_length(halved)


def _over_bounds(series: Series | None) -> str:
    (_, slow), (_, fast) = ends(series, "no_cache"), ends(series, "kv_cache")
    bounds = [ends(series, f"bound_{name}")[1] for name in ("no_cache", "kv_cache")]
    without, kept = (versus_bound(b, t) for b, t in zip(bounds, (slow, fast)))
    if "missing" in (without.kind, kept.kind):
        return missing("the longest step over its bound").sentence
    said = f"The longest step without a cache is {without}; the one with a cache is {kept}."
    if without.ratio and kept.ratio and kept.ratio > 1.25 * without.ratio and without.ratio > 0.9:
        said += " The many rows of the first come closer to their ceiling than the single row of the second."
    return said


def _products(series: Series | None) -> str:
    alone, slow = ends(series, "products"), ends(series, "no_cache")
    parts = [share(a, t) for a, t in zip(alone, slow)]
    if not all(value(m).known for m in (*alone, *slow)):
        return missing("the time of the products alone at each length").sentence
    if {part.kind for part in parts} & {"failed", "undefined"}:
        return "The products of a pass, timed alone, took longer than the whole step, so this run says nothing about them."
    return f"The products of a pass, timed alone, take {parts[0]} of the shortest step, and {parts[1]} of the longest."


def _fitted(run: Any) -> str:
    found = fit(run)
    if found.kind == "missing":
        return found.sentence
    said = f"Between the two steps from which both are taken, {found}."
    ours = model_kind(run)
    if found.kind in ("cannot tell", "neither"):
        return said
    return said + (" So the two costs add" if found.kind == "sum" else " So the two costs overlap") + (
        ", as assumed." if found.kind == ours else ", against the assumption."
    )  # fmt: skip


# What broke.


def broke(run: Any, throughput_run: Any = None) -> dict[str, str]:
    """The two assumptions of this chapter's first version: that the fixed cost is starting, and that it hides arithmetic."""
    throughput_run = run if throughput_run is None else throughput_run
    cause = floor_cause(run)
    foretold_cause = (
        "The first version of this chapter attributed the fixed cost to starting operations wherever it was more than "
        "twice the bound."
    )
    if cause.kind == "products":
        start = f"{foretold_cause} On this machine that is wrong. {cause.sentence}"
    elif cause.kind == "around":
        start = f"{foretold_cause} On this machine that may be right. {cause.sentence}"
    else:
        start = f"{foretold_cause} {cause.sentence}"
    models, found = foretold(run), halving(run[STEPS])
    assumed = "That version took the larger of fixed cost and arithmetic on every machine."
    if not models or found.kind == "missing":
        second = f"{assumed} {missing('what that predicts').sentence}"
    else:
        at = models["larger"].factor_at(2)
        verdict = (
            versus_prediction(at, found.ratio, "tokens").text
            if found.kind == "at" and at
            else f"measured, it does so {found}"
        )
        second = f"{assumed} By that model the cache halves the time of a step here at {token_count(at)}; {verdict}."
        middle = len(gains(throughput_run)) // 2
        old = predicted_gains(throughput_run, run, "larger")
        measured = gains(throughput_run)
        if measured and old[middle] and value(measured[middle]).known:
            over = number(column(throughput_run[THROUGHPUT], "generated")[middle])
            second += f" For the gain over {over} tokens, {versus_prediction(old[middle], measured[middle], '×')}."
    fitted = fit(run)
    lesson = ""
    if fitted.kind == "sum":
        lesson = (
            " Costs add where one processor does all the work. They overlap only where two "
            "devices work at the same time."
        )
    elif fitted.kind == "larger":
        lesson = " On this machine the larger of the two is the better model after all."
    return {"broke_cause_finding": start, "broke_model_finding": second + lesson}


# The table at the end.


def predictions(run: Any, steps_run: Any = None, throughput_run: Any = None, latency_run: Any = None,
                profile_run: Any = None) -> list[Prediction]:  # fmt: skip
    """The chapter's predictions. `run`: that of the fixed cost; the others where an experiment shows another run."""
    steps_run, throughput_run, latency_run, profile_run = (
        run if other is None else other
        for other in (steps_run, throughput_run, latency_run, profile_run)
    )
    found = [*_step_predictions(run, steps_run), *_gain_predictions(steps_run, throughput_run)]
    series = latency_run[LATENCY]
    found.append(Prediction(
        "gain of the cache after the longest prompt, from the bounds",
        _over(ends(series, "bound_no_cache")[1], ends(series, "bound_kv_cache")[1]),
        _over(ends(series, "no_cache")[1], ends(series, "kv_cache")[1]), "", "×",
    ))  # fmt: skip
    kind = largest_family(profile_run)
    found.append(Prediction("largest part of a step with a cache", "gemv", kind,
                            "one row meets every matrix", ""))  # fmt: skip
    return [_without_excuse(prediction) for prediction in found]


def _step_predictions(run: Any, steps_run: Any) -> list[Prediction]:
    series, models = steps_run[STEPS], foretold(run)
    halved, alone = halving(series), by_products(steps_run)
    flat = trend(column(series, "length"), column(series, "kv_cache"), "s", "{} tokens")
    add = "nothing overlaps: the two costs add" if fit(steps_run).kind == "sum" else ""
    few = "passes of few tokens run below the ceiling" if _few_are_slow(steps_run) else ""
    bounds = _bounds_halve(run)
    later = _later(series, bounds, halved.ratio if halved.kind == "at" else None)
    foreseen = [
        ("length at which the cache halves a step, from the bounds alone", bounds, later),
        *(
            (f"the same, from {NAMES[kind]}", models[kind].factor_at(2) if models else None, why)
            for kind, why in (("sum", few), ("larger", add))
        ),
        (
            "the same, from the products timed alone",
            alone.ratio if alone.kind == "at" else None,
            "",
        ),
    ]
    weights = "the weights are most of what it reads"
    return [
        Prediction("time of a step with a cache, as the sequence grows", "flat", flat, weights, ""),
        *(_of_length(claim, length, halved, why, series) for claim, length, why in foreseen),
    ]


def _of_length(
    claim: str, length: float | None, halved: Finding, why: str, series: Series | None
) -> Prediction:
    """A predicted length against the measured one, which may lie before the first length or beyond the last."""
    if halved.kind in ("at", "missing") or not length:
        return Prediction(
            claim, length, halved.ratio if halved.kind == "at" else None, why, "tokens"
        )
    first, last = series["length"][0], series["length"][-1]
    wrong = length <= last if halved.kind == "never" else length > first
    found = Finding(halved.text, halved.kind if wrong else "cannot tell")
    return Prediction(claim, token_count(length), found, why, "tokens")


def _later(series: Series | None, foreseen: float | None, at: float | None) -> str:
    """Why a step is halved later than its bounds say, where its two stages differ in their distance from them."""
    over = [
        growth(ends(series, f"bound_{stage}")[1], ends(series, stage)[1])
        for stage in ("no_cache", "kv_cache")
    ]
    if None in (foreseen, at, *over) or at <= foreseen or over[1] <= 1.1 * over[0]:
        return ""
    return "the step with a cache lies further above its bound than the step without"


def _few_are_slow(run: Any) -> bool:
    """Whether a pass of few tokens gains less from each operation than the longest one, by the steps themselves."""
    series = run[STEPS]
    rows = [
        (n, value(t).middle) for n, t in zip(column(series, "length"), column(series, "no_cache"))
    ]
    known = [(n, t) for n, t in rows if t is not None]
    if len(known) < 3:
        return False
    (one, first), (last, longest) = known[0], known[-1]
    few = next(((n, t) for n, t in known if n >= 32), known[-1])
    rates = [rate_between(GPT2_CONFIG, one, first, n, t) for n, t in (few, (last, longest))]
    return None not in rates and rates[0] < rates[1] / 1.05


def _gain_predictions(steps_run: Any, throughput_run: Any) -> list[Prediction]:
    generated, measured = column(throughput_run[THROUGHPUT], "generated"), gains(throughput_run)
    cause = fit(steps_run)
    found = []
    for kind in NAMES:
        why = (
            "nothing overlaps: the two costs add"
            if kind == "larger" and cause.kind == "sum"
            else ""
        )
        foreseen = predicted_gains(throughput_run, steps_run, kind)
        for i in dict.fromkeys((len(generated) // 2, len(generated) - 1)):
            claim = (
                f"gain of the cache over {number(generated[i])} tokens, from {NAMES[kind]}"
                if generated
                else "gain of the cache"
            )
            row = (foreseen[i], measured[i]) if generated else (None, None)
            found.append(Prediction(claim, *row, why, "×"))
    return found  # fmt: skip


def _over(a: Measured, b: Measured) -> float | None:
    x, y = value(a).middle, value(b).middle
    return x / y if x and y and x > 0 and y > 0 else None


def _without_excuse(prediction: Prediction) -> Prediction:
    """A cause of a deviation stands beside a deviation only, and a reason for a success beside a success only."""
    failed = prediction.verdict == "the prediction failed"
    if isinstance(prediction.predicted, str):
        fits = prediction.verdict == "as predicted"
    else:
        fits = failed or prediction.verdict.startswith("a little")
    why = prediction.why if fits else ""
    return replace(prediction, why=why or ("no cause was measured" if failed else ""))


def render(run: Any) -> dict[str, str]:
    """Every sentence of the chapter, by the name under which the chapter glues it."""
    published = reference()
    return (
        answer(run) | kv_floor.floor(run) | steps(run) | kv_throughput.throughput(run)
        | kv_throughput.published_run(published) | kv_throughput.pays(run, published)
        | vllm_single.with_caches(published, published_vllm()) | kv_work.latency(run)
        | kv_work.profile(run) | kv_work.published_profile(published) | kv_work.utilisation(run)
        | kv_work.intensity(run) | kv_work.same(run) | broke(run) | kv_work.realistic()
    )  # fmt: skip
