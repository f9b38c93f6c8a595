"""The sentences of chapter 1 that depend on what was measured.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None where it has none.

Introduced in chapter 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lib.bench.findings import realistic_prompt, vllm_single
from lib.bench.findings.curves import growth, trend
from lib.bench.findings.predictions import Prediction
from lib.bench.findings.values import (
    Measured,
    column,
    ends,
    number,
    percent,
    quantity,
    times,
    value,
)
from lib.bench.findings.vocabulary import (
    Finding,
    capital,
    compare,
    missing,
    share,
    versus_bound,
    versus_prediction,
)
from lib.bench.records.files import reference
from lib.bench.records.published_vllm import published_vllm
from lib.bench.records.series import Series

LATENCY, THROUGHPUT = "token_time_by_prompt", "throughput_by_generated"
FEW_ROWS = "with few rows a product does not reach the rate of the large square product that set the ceiling"


def families(profiled: Series | None) -> dict[str, float]:
    """Share of the time by kernel family, with "gemm" and "gemv" always there; empty where no share was measured."""
    if profiled is None or "share" not in profiled or None in profiled["share"]:
        return {}
    return {"gemm": 0.0, "gemv": 0.0} | dict(zip(profiled["family"], profiled["share"]))


def bound_growth(run: Any) -> Finding:
    """Verdict on the growth from the shortest prompt to the longest: does the time grow as its bound does?"""
    series = run[LATENCY]
    expected, got = growth(*ends(series, "bound")), growth(*ends(series, "no_cache"))
    return versus_prediction(expected, got, "×")


def gap(run: Any) -> Finding:
    """Where the time above the bound goes, for the shortest prompt: into the products, or into what surrounds them.

    kind: "products", "around", "both", "small" (no gap worth a cause) or "missing".
    """
    series = run[LATENCY]
    measured, bound, products = (
        value(ends(series, name)[0]).middle for name in ("no_cache", "bound", "products")
    )
    if measured is None or bound is None or bound <= 0 or measured <= 0:
        return missing("the time above the bound")
    if measured <= 1.25 * bound:
        return Finding("there is little time above the bound to explain", "small")
    if products is None:
        return _gap_by_profile(series, run["profile"], measured, bound)
    if products > 1.1 * measured:
        text = "the products, timed alone, took longer than the whole pass, so this run cannot say where the gap lies"
        return Finding(text, "cannot tell")
    part = min(1.0, max(0.0, (products - bound) / (measured - bound)))
    said = (
        f"of the time above the bound, {percent(part)} is spent in the matrix products themselves"
    )
    if part >= 0.55:
        over = (growth(*pair) for pair in zip(ends(series, "bound"), ends(series, "products")))
        return Finding(f"{said}: {_slow_products(*over)}", "products", part)
    if part <= 0.45:
        text = f"{said}; the larger part is spent around them: in attention, in small operations, and in starting each of them"
        return Finding(text, "around", part)
    return Finding(f"{said}, and about as much around them", "both", part)


def _slow_products(short: float | None, long: float | None) -> str:
    """Why products lie above the bound; `short`, `long`: how many times, for the shortest and the longest prompt."""
    if short and long and short > 1.1 * long:
        return FEW_ROWS
    return "they do not reach the rate of the large square product that set the ceiling, with few rows or with many"


def _gap_by_profile(
    series: Series, profiled: Series | None, measured: float, bound: float
) -> Finding:
    """The same from the profile of one pass, for a run that did not time its products alone."""
    shares = families(profiled)
    if shares:
        part = shares["gemm"] + shares["gemv"]
        if 2 * (1 - part) * measured < measured - bound:
            text = (
                f"in a profile of one pass, {percent(part)} of the time is in matrix products, so that what surrounds "
                "them explains less than half of the time above the bound"
            )
            over = (growth(*pair) for pair in zip(ends(series, "bound"), ends(series, "no_cache")))
            return Finding(f"{text}: {_slow_products(*over)}", "products", part)
    return missing("where the time above the bound goes")


def latency(run: Any) -> dict[str, str]:
    """The sentences under the figure of latency by prompt."""
    series = run[LATENCY]
    prompts = column(series, "prompt")
    ours, theirs, bound, products = (
        ends(series, name) for name in ("no_cache", "transformers", "bound", "products")
    )
    verdict, grown, expected = bound_growth(run), growth(*ours), growth(*bound)
    if grown is None or expected is None:
        first = missing("the growth with the prompt").sentence
    else:
        first = (
            f"With a prompt {times(growth(*(prompts[0], prompts[-1])) or 1)} as long, a new token takes {times(grown)} "
            f"as long, where the bound grows {times(expected)}: {verdict.verdict}."
        )
    short, long = (versus_bound(b, t, "ms") for b, t in zip(bound, ours))
    over = f"The measured time is {short} for the shortest prompt, and {long} for the longest."
    if "missing" in (short.kind, long.kind):
        over = missing("the time over its bound").sentence
    alone = missing("the time of the matrix products alone").sentence
    if value(products[0]).known and value(ours[0]).known:
        alone = (
            f"The pass's matrix products, timed alone, take {share(products[0], ours[0])} of its time for the shortest "
            f"prompt and {share(products[1], ours[1])} for the longest."
        )
    return {
        "growth_finding": first,
        "over_bound_finding": over,
        "products_finding": f"{alone} {gap(run).sentence}",
        "broke_finding": _broke(verdict, grown, expected, gap(run)),
        "transformers_finding": _against_transformers(ours, theirs),
    }


def _broke(verdict: Finding, grown: float | None, expected: float | None, cause: Finding) -> str:
    lesson = (
        "The rate of a product depends on its shape as well as on the machine: measure the "
        "product that the model runs, with the number of rows that it has."
    )
    foretold = "The first prediction was that the time of a token grows as its bound does"
    if grown is None or expected is None:
        return f"{foretold}; {missing('that growth')}. {lesson}"
    if verdict.kind in ("failed", "little"):
        why = f" {cause.sentence}" if cause.kind in ("products", "around", "both") else ""
        said = f"{foretold}, {times(expected)} from the shortest prompt to the longest. It grew {times(grown)}."
        return f"{said}{why} {lesson}" if cause.kind == "products" else f"{said}{why}"
    held = (
        "this run confirms it"
        if verdict.kind == "about"
        else "this run cannot tell whether it does"
    )
    return f"{foretold}, and {held}. A bound is only a limit, not a prediction. {lesson}"


def _against_transformers(
    ours: tuple[Measured, Measured], theirs: tuple[Measured, Measured]
) -> str:
    names = ("this engine", "transformers")
    short, long = (compare(a, b, *names, unit="ms") for a, b in zip(ours, theirs))
    said = f"For the shortest prompt, {short}; for the longest, {long}."
    if {short.kind, long.kind} & {"missing", "undefined"}:
        return said
    if short.direction == long.direction == 0:
        return f"{said} Both do the same arithmetic."
    apart = [max(f.ratio, 1 / f.ratio) for f in (short, long)]
    if short.direction and long.direction in (0, short.direction) and apart[0] > 1.1 * apart[1]:
        return (
            f"{said} Both do the same arithmetic. The difference shrinks as the products grow, as it does when it "
            "comes from the Python and the small operations around them."
        )
    return f"{said} Both do the same arithmetic, and no measurement of this chapter says where the difference comes from."


def throughput_trend(run: Any) -> Finding:
    """Throughput against the length of the answer."""
    series = run[THROUGHPUT]
    rates = column(series, "no_cache")
    # Rates with the spread of their repeats; a record may lack either column.
    for i, (samples, _) in enumerate(zip(column(series, "seconds"), rates)):
        spread = value(samples)
        if spread.count > 1 and spread.low > 0 and value(rates[i]).known:
            rates[i] = [value(rates[i]).middle * spread.middle / s for s in samples]
    return trend(column(series, "generated"), rates, "tokens/s")


def throughput(run: Any) -> dict[str, str]:
    """The sentences under the figures of throughput by generated tokens."""
    series = run[THROUGHPUT]
    generated, shape = column(series, "generated"), throughput_trend(run)
    if shape.kind == "missing" or not generated:
        first = missing("the throughput of a longer answer").sentence
    else:
        judged = {"falls": "as predicted", "cannot tell": "so the prediction is not judged"}
        verdict = judged.get(shape.kind, "so the prediction failed")
        over = f"As the answer grows from {number(generated[0])} to {number(generated[-1])} tokens, the throughput"
        first = f"{over} {shape}, {verdict}."
    used, once, read, memory = (
        value(ends(series, name)[1]).middle for name in ("arithmetic", "mfu", "mbu", "peak_mb")
    )
    ceilings = missing("the share of the ceilings").sentence
    alone = ceilings
    repeated = missing("the arithmetic of the longest run").sentence
    if None not in (used, once, read):
        ceilings = (
            f"In the longest run the machine did arithmetic at {percent(used)} of its ceiling, and read "
            f"weights at {percent(read)} of its bandwidth."
        )
        alone = (
            f"One sequence read weights at {percent(read)} of the bandwidth, and its useful arithmetic was "
            f"{percent(once)} of the ceiling."
        )
        if max(read, once) < 0.5:
            alone += " More than half of both ceilings is unused."
        if used > 0 and 0 < once <= used:
            again = share(used - once, used)
            repeated = (
                f"{capital(again.text)} of that arithmetic had been done before, one step earlier, for the same tokens: "
                f"it is {times(used / once)} what the answer needs."
            )
    return {
        "throughput_finding": first,
        "ceilings_finding": ceilings,
        "repeated_finding": repeated,
        "alone_finding": alone,
        "peak_finding": _peak(memory, on_gpu=value(ends(series, "gpu_busy")[1]).known),
    }


def _peak(megabytes: float | None, on_gpu: bool) -> str:
    if megabytes is None:
        return missing("peak memory").sentence
    if on_gpu:
        return f"Peak memory was {quantity(1e6 * megabytes, 'B')} of GPU memory."
    if megabytes < 1:
        return "The process did not grow while it ran: it reused memory that it held already, so this run has no peak to show."
    return f"Peak memory was {quantity(1e6 * megabytes, 'B')} on top of what the process held."


def published_curve(sweep: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """The published run's throughput by generated tokens: {"new_tokens": …, "tok_s": …}."""
    shape = trend(sweep["new_tokens"], sweep["tok_s"], "tokens/s", "{} tokens")
    said = f"On the published A100 the curve {shape}."
    if shape.kind == "peaks":
        said += (
            " A short sequence lies below that machine's ridge, so a pass takes the time to "
            "start its operations, for any number of tokens; and a first, slow call counts less "
            "as the run gets longer."
        )
    return {"published_finding": said}


def profile(run: Any) -> dict[str, str]:
    """The sentences under the profile's table."""
    series = run["profile"]
    shares = families(series)
    if not shares:
        return {"profile_finding": missing("the profile").sentence}
    gemm, gemv = shares["gemm"], shares["gemv"]
    said = (
        f"For one pass over {number(series.params['prompt'])} tokens, {share(gemm)} of the time is in products of many "
        f"rows (gemm), and {share(gemv)} in products with one row (gemv), among them the vocabulary matrix."
    )
    if gemm + gemv > 0.5:
        said += f" Everything else together is {share(max(0.0, 1 - gemm - gemv))}."
    return {"profile_finding": said}


def predictions(run: Any, by_length: Any = None) -> list[Prediction]:
    """The chapter's predictions, for the table at its end; `by_length`: the run of the throughput, where another."""
    by_length = run if by_length is None else by_length
    series, rates = run[LATENCY], by_length[THROUGHPUT]
    grown, cause = growth(*ends(series, "no_cache")), gap(run)
    why = cause.text if cause.kind in ("products", "around", "both") else ""
    bound = Prediction(
        "time of a new token, longest prompt over shortest, from the bound",
        growth(*ends(series, "bound")), grown, why, "×",
    )  # fmt: skip
    corrected = Prediction(
        "the same, from the matrix products timed alone",
        growth(*ends(series, "products")), grown, _around(series), "×",
    )  # fmt: skip
    shape = Prediction(
        "throughput as the answer grows", "falls", throughput_trend(by_length), "every token computes all before it again", ""
    )  # fmt: skip
    ratio = Prediction(
        "throughput, longest answer over shortest, from the bound",
        growth(*ends(rates, "bound")), growth(*ends(rates, "no_cache")), why, "×",
    )  # fmt: skip
    return [_without_excuse(prediction) for prediction in (bound, corrected, shape, ratio)]


def _around(series: Series | None) -> str:
    """What the products alone leave out, where the longest pass took measurably longer than its products."""
    rest = growth(ends(series, "products")[1], ends(series, "no_cache")[1])
    if rest is None or rest <= 1.1:
        return ""
    return f"the longest pass takes {times(rest)} as long as its products: attention and small operations are the rest"


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
    vllm = published_vllm()
    published = published_curve(reference()["no_cache_sweep"])
    published |= vllm_single.by_prompt(reference(), vllm) | vllm_single.by_generated(vllm)
    return latency(run) | throughput(run) | profile(run) | published | realistic_prompt.forward()
