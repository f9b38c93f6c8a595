"""The sentences of chapter 2 about one step against the length of the sequence.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None
where it has none.

Introduced in chapter 2.
"""

from typing import Any

from lib.bench.findings.curves import growth, trend
from lib.bench.findings.kv_cache.kv_steps import (
    NAMES,
    STAGES,
    STEPS,
    fit,
    foretold,
    halving,
    kept_growth,
    model_kind,
    overlaps,
    token_count,
)
from lib.bench.findings.run_notes import is_recorded
from lib.bench.findings.values import column, ends, number, times, value
from lib.bench.findings.vocabulary import (
    Finding,
    compare,
    missing,
    share,
    versus_bound,
    versus_prediction,
)
from lib.bench.measure import counts
from lib.bench.measure.step_model import first_length
from lib.bench.records.series import Series
from lib.models.checkpoint import GPT2_CONFIG


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
            f"{between}, a step without a cache takes {times(grown)} as long; one with a cache {shape}. "
            f"The growth of the latter beside the model's: {versus_prediction(*kept_growth(run), '×')}."
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


def _halved(run: Any) -> str:
    found = halving(run[STEPS])
    if found.kind == "missing":
        return found.sentence
    said = f"Measured, the cache halves the time of a step {found}."
    models, bounds = foretold(run), bounds_halve(run)
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


def halved_by_bounds(here: int | None, run: Any) -> dict[str, str]:
    """Where the cache halves a step by this copy's ceilings, `here`, and by those of the recorded run that is quoted."""
    said = f"By these bounds the cache halves the time of a step at {token_count(here)}."
    quoted = bounds_halve(run) if is_recorded(run) else here
    if quoted != here:
        said += f" By the ceilings of the recorded run, which the next sections quote, it does so at {token_count(quoted)}."
    return {"halved_bound_finding": said}


def bounds_halve(run: Any) -> int | None:
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
    said = f"Both were fitted to the shortest step with a cache and to the longest without. Between these two, {found}."
    ours = model_kind(run)
    if found.kind in ("cannot tell", "neither"):
        return said
    return said + (" So the two costs add" if found.kind == "sum" else " So the two costs overlap") + (
        ", as assumed." if found.kind == ours else ", against the assumption."
    )  # fmt: skip
