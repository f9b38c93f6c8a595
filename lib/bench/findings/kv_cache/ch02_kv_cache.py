"""The predictions of chapter 2 against what was measured, and all its sentences together.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None
where it has none.

Introduced in chapter 2.
"""

from typing import Any

from lib.bench.findings import vllm_single
from lib.bench.findings.curves import growth
from lib.bench.findings.kv_cache import kv_floor, kv_throughput, kv_work
from lib.bench.findings.kv_cache.kv_answer import answer
from lib.bench.findings.kv_cache.kv_assumptions import broke
from lib.bench.findings.kv_cache.kv_by_length import bounds_halve, steps
from lib.bench.findings.kv_cache.kv_steps import (
    NAMES,
    STEPS,
    by_products,
    fit,
    foretold,
    halving,
    kept_growth,
    token_count,
)
from lib.bench.findings.kv_cache.kv_throughput import THROUGHPUT, gains, predicted_gains
from lib.bench.findings.kv_cache.kv_work import LATENCY, largest_family
from lib.bench.findings.predictions import Prediction, with_causes
from lib.bench.findings.values import column, ends, number, over, value
from lib.bench.findings.vocabulary import ABOUT, Finding
from lib.bench.measure.step_model import rate_between
from lib.bench.records.files import reference
from lib.bench.records.published_vllm import published_vllm
from lib.bench.records.series import Series
from lib.models.checkpoint import GPT2_CONFIG

ADD = "nothing overlaps: the two costs add"


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
        over(ends(series, "bound_no_cache")[1], ends(series, "bound_kv_cache")[1]),
        over(ends(series, "no_cache")[1], ends(series, "kv_cache")[1]), "", "×",
    ))  # fmt: skip
    kind = largest_family(profile_run)
    found.append(Prediction("largest part of a step with a cache", "gemv", kind,
                            "one row meets every matrix", ""))  # fmt: skip
    return with_causes(found)


def _step_predictions(run: Any, steps_run: Any) -> list[Prediction]:
    series, models = steps_run[STEPS], foretold(run)
    halved, alone = halving(series), by_products(steps_run)
    adds, few_are_slow = fit(steps_run).kind == "sum", _few_are_slow(steps_run)
    bounds = bounds_halve(run)
    later = _later(series, bounds, halved.ratio if halved.kind == "at" else None)
    foreseen = [
        ("length at which the cache halves a step, from the bounds alone", bounds, later),
        *(
            (f"the same, from {NAMES[kind]}", length, cause if _earlier(halved, length) else "")
            for kind, cause in (
                ("sum", "passes of few tokens run below the ceiling" if few_are_slow else ""),
                ("larger", ADD if adds else ""),
            )
            for length in [models[kind].factor_at(2) if models else None]
        ),
        (
            "the same, from the products timed alone",
            alone.ratio if alone.kind == "at" else None,
            "",
        ),
    ]
    return [
        Prediction(
            "time of a step with a cache, longest sequence over shortest",
            *kept_growth(steps_run),
            "",
            "×",
        ),  # fmt: skip
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


def _earlier(halved: Finding, length: float | None) -> bool:
    """Whether the step was halved at a shorter sequence than predicted."""
    if halved.kind == "at" and length:
        return halved.ratio < length
    return halved.kind == "before" and bool(length)


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
    """Whether the operations of a pass of few tokens run below the ceiling, by the steps themselves."""
    series, roofline = run[STEPS], run.roofline
    ceiling = roofline.flops.get("float32") if roofline is not None else None
    rows = [
        (n, value(t).middle) for n, t in zip(column(series, "length"), column(series, "no_cache"))
    ]
    known = [(n, t) for n, t in rows if t is not None]
    if len(known) < 2 or ceiling is None:
        return False
    (one, first), few = known[0], next(((n, t) for n, t in known if n >= 32), known[-1])
    rate = rate_between(GPT2_CONFIG, one, first, *few)
    return rate is not None and rate < ceiling / (1 + ABOUT)


def _gain_predictions(steps_run: Any, throughput_run: Any) -> list[Prediction]:
    generated, measured = column(throughput_run[THROUGHPUT], "generated"), gains(throughput_run)
    adds = fit(steps_run).kind == "sum"
    found = []
    for kind in NAMES:
        foreseen = predicted_gains(throughput_run, steps_run, kind)
        for i in dict.fromkeys((len(generated) // 2, len(generated) - 1)):
            claim = (
                f"gain of the cache over {number(generated[i])} tokens, from {NAMES[kind]}"
                if generated
                else "gain of the cache"
            )
            row = (foreseen[i], measured[i]) if generated else (None, None)
            above = (
                over(*reversed(row)) or 0
            ) > 1  # costs that add make a larger gain than costs that overlap
            why = ADD if kind == "larger" and adds and above else ""
            found.append(Prediction(claim, *row, why, "×"))
    return found  # fmt: skip


def render(run: Any) -> dict[str, str]:
    """Every sentence of the chapter, by the name under which the chapter glues it."""
    published = reference()
    return (
        answer(run) | kv_floor.floor(run) | steps(run) | kv_throughput.throughput(run)
        | kv_throughput.published_run(published) | kv_throughput.pays(run, published)
        | vllm_single.with_caches(published, published_vllm()) | kv_work.latency(run)
        | kv_work.profile(run) | kv_work.published_profile(published) | kv_work.utilisation(run)
        | kv_work.intensity(run) | kv_work.crossover(run.roofline) | kv_work.same(run) | broke(run) | kv_work.realistic()
    )  # fmt: skip
