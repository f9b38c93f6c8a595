"""Why a larger batch gains more, or less, than the bounds of chapter 3 allow.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None
where it has none. `packed` is the recorded run of chapter 8, whose products with weights laid out
once explain what the first doubling costs.

Introduced in chapter 3.
"""

from typing import Any

from lib.bench.findings.batching.batch_steps import (
    SWEEP,
    at_row,
    batches,
    over_bound,
    ratio,
    step_ms,
)
from lib.bench.findings.curves import growth
from lib.bench.findings.values import cell, column, percent, quantity, times, value
from lib.bench.findings.vocabulary import Finding, missing, share, size_of, versus_prediction
from lib.bench.measure import counts
from lib.bench.records.series import Series
from lib.models.checkpoint import GPT2_CONFIG


def gain_cause(run: Any, packed: Any = None) -> Finding:
    """Why the batch gains more, or less, than the bounds allow.

    kind: "products" or "around" (what the first step spends its time on), "late" (the largest batch is the slow one),
    "about" (nothing to explain), "cannot tell" (the first step's time was not split), "missing".
    """
    series = run[SWEEP]
    first, last = over_bound(series, 0), over_bound(series, -1)
    if first is None or last is None:
        return missing("the time of a step over its bound")
    small, large = batches(series)[0], batches(series)[-1]
    if size_of(first / last) == "about":
        return Finding(
            f"the first step takes {times(first)} its bound and the last one {times(last)}, about the same",
            "about",
        )
    if first < last:
        return Finding(
            f"a step takes {times(last)} its bound at batch {large} and {times(first)} at batch {small}, and a gain is what "
            "the last has over the first",
            "late",
        )
    said = (
        f"a step takes {times(first)} its bound at batch {small} and {times(last)} at batch {large}, and a gain is measured "
        "from the first"
    )
    found = _first_step(run, packed)
    if found.kind == "missing":
        return Finding(
            f"{said}; what that first step spends its time on was not measured here", "cannot tell"
        )
    return Finding(f"{said}. {found.sentence.removesuffix('.')}", found.kind, found.ratio)


def _first_step(run: Any, packed: Any) -> Finding:
    """What a step of one sequence spends its time on: by this chapter's products, else by chapter 8's profile."""
    series = run[SWEEP]
    alone, step = at_row(column(series, "products"), 0), at_row(step_ms(series), 0)
    part = growth(step, alone)
    where = "of that first step"
    if part is None:
        kinds = packed["time_by_kind"] if packed is not None else None
        part = value(cell(kinds, "matrix products", 0)).middle
        where = "of a step of one sequence, in chapter 8's recorded run with SmolLM2,"
    if part is None or part <= 0:
        return missing("the first step's share of products")
    if part > 1.1:
        return Finding(
            "the products alone took longer than the step, so this run cannot say why",
            "cannot tell",
        )
    part = min(1.0, part)
    if part < 0.55:
        said = f"{percent(1 - part)} {where} is spent around the products, on work that a batch shares as it shares the weights"
        return Finding(said, "around", part)
    row, roofline = value(at_row(column(series, "products_step"), 0)).middle, run.roofline
    rate = ""
    if row and row > 0 and roofline is not None:
        read = counts.streamed_bytes(GPT2_CONFIG, "float32") / (row / 1e3)
        rate = (
            f": with one row they read the weights at {quantity(read, 'B/s')}, where the measured bandwidth is "
            f"{quantity(roofline.bandwidth, 'B/s')}"
        )
    return Finding(f"{share(part)} {where} is in the products{rate}", "products", part)


def first_doubling(series: Series | None) -> str:
    """The first doubling of the batch, which the bound says is free."""
    ours, bound = step_ms(series), step_ms(series, "bound_tok_s")
    got, expected = ratio(ours, 1), ratio(bound, 1)
    if got is None or expected is None:
        return missing("the first doubling").sentence
    small, large = batches(series)[:2]
    verdict = versus_prediction(expected, got, "×").verdict
    both = (
        f"{quantity(value(ours[1]).middle, 'ms')} against {quantity(value(ours[0]).middle, 'ms')}"
    )
    return (
        f"A step of {large} sequences takes {times(got)} as long as a step of {small} ({both}), where its bound takes "
        f"{times(expected)}: {verdict}."
    )


def first_cause(series: Series | None) -> Finding:
    """Whether the products alone explain the first doubling.

    kind: "products" (most of the extra time is theirs), "around" (less than that), "about" (no extra time), "cannot
    tell" (they took more extra time than the whole step).
    """
    got, alone = ratio(step_ms(series), 1), ratio(column(series, "products"), 1)
    if got is None or alone is None:
        return missing("the time of the products alone")
    large = batches(series)[1]
    said = f"the matrix products of these steps, timed alone, take {times(alone)} as long with {large} sequences"
    if got <= 1.1:
        return Finding(said, "about", alone)
    steps, products = (
        [value(m).middle for m in (at_row(c, 0), at_row(c, 1))]
        for c in (step_ms(series), column(series, "products"))
    )
    part = (products[1] - products[0]) / (steps[1] - steps[0])
    if part > 1.25:
        text = f"{said}, which is more extra time than the whole step took: this run cannot say why"
        return Finding(text, "cannot tell", part)
    if part >= 0.9:
        return Finding(f"{said}: the step's extra time is theirs", "products", part)
    if part >= 0.55:
        text = f"{said}: most of the step's extra time is theirs ({percent(part)})"
        return Finding(text, "products", part)
    if part <= 0:
        return Finding(f"{said}, which does not explain the step's extra time", "around", part)
    text = f"{said}, which explains only a part of the step's extra time ({percent(part)})"
    return Finding(text, "around", part)


def laid_out(packed: Any) -> Finding:
    """The same doubling with weights laid out once, from chapter 8's recorded run.

    kind: "free" where it costs nothing there and something with PyTorch's own products, else "other".
    """
    series = packed["products"] if packed is not None else None
    plain, once = (column(series, f"{name}, float32") for name in ("F.linear", "packed"))
    before, after = ratio(plain, 1), ratio(once, 1)
    if before is None or after is None:
        return missing("a product whose weights are laid out once")
    small, large = batches(series)[:2]
    said = (
        f"in chapter 8's recorded run of {packed.date}, with SmolLM2, PyTorch's own products with {large} rows take "
        f"{times(before)} as long as those with {small}; with weights that are laid out once, {times(after)}"
    )
    if after <= 1.1 < before:
        return Finding(f"{said}, and there the larger batch takes no more time", "free", after)
    return Finding(said, "other", after)
