"""The sentences of chapter 1 about the time of a token: its growth with the prompt, and its bound.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None
where it has none.

Introduced in chapter 1.
"""

from typing import Any

from lib.bench.findings.curves import growth
from lib.bench.findings.forward_pass.forward_profile import families
from lib.bench.findings.run_notes import of_record
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
    compare,
    missing,
    share,
    versus_bound,
    versus_prediction,
)
from lib.bench.records.series import Series

LATENCY = "token_time_by_prompt"
ALL = 1.1  # products timed alone may take this many times as long as their pass: what two timings differ by
FEW_ROWS = "with few rows a product does not reach the rate of the large square product that set the ceiling"


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
        text = "for the shortest prompt, there is little or no time above the bound to explain"
        return Finding(text, "small")
    if products is None:
        return _gap_by_profile(series, run["profile"], measured, bound)
    if products > ALL * measured:
        text = "the products, timed alone, took longer than the whole pass, so this run cannot say where the gap lies"
        return Finding(text, "cannot tell")
    part = min(1.0, max(0.0, (products - bound) / (measured - bound)))
    said = (
        f"for the shortest prompt, {percent(part)} of the time above the bound is spent in the matrix products "
        "themselves"
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
    else:
        over += _means(series)
    return {
        "growth_finding": of_record(run, first),
        "over_bound_finding": over,
        "products_finding": f"{_alone(products, ours)} {gap(run).sentence}",
        "broke_finding": _broke(verdict, grown, expected, gap(run)),
        "transformers_finding": _against_transformers(ours, theirs),
    }


def _means(series: Series) -> str:
    """That time and bound are means over several new tokens, of growing sequences; begins with a space."""
    new = series.params.get("new_tokens")
    if not new or new < 2:
        return ""
    return (
        f" Both are means over {number(new)} new tokens. Each is computed with those before it, so this bound "
        "belongs to sequences that are longer than the prompt."
    )


def _alone(products: tuple[Measured, Measured], ours: tuple[Measured, Measured]) -> str:
    """The part of a pass that its products take, timed alone, for the shortest and the longest prompt."""
    if not all(value(m).known for m in (*products, *ours)):
        return missing("the time of the matrix products alone").sentence
    parts = [share(p, t) for p, t in zip(products, ours)]
    if any(part.kind == "undefined" or part.ratio > ALL for part in parts):
        took = [quantity(value(m).middle, "ms") for m in (*products, *ours)]
        return (
            f"The pass's matrix products, timed alone, took {took[0]} for the shortest prompt and {took[1]} for the "
            f"longest, where the whole passes took {took[2]} and {took[3]}: this run does not say which part they take."
        )
    short, long = (f"all ({percent(p.ratio)})" if p.kind == "failed" else p for p in parts)
    return (
        f"The pass's matrix products, timed alone, take {short} of its time for the shortest prompt and {long} for the "
        "longest."
    )


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
