"""The kernel of the products: the products alone, packed or not, and the packed step that follows.

Each function takes a run; most return sentences of chapter 8.

Introduced in chapter 8.
"""

from typing import Any

from lib.bench.findings.launch_overhead.overhead_rows import (
    PACKED,
    PRODUCTS,
    STEPS,
    last_batch,
    named,
)
from lib.bench.findings.run_notes import of_record
from lib.bench.findings.values import Measured, cell, column, positive, times
from lib.bench.findings.vocabulary import capital, compare, missing, versus_bound
from lib.bench.records.series import Series

SLOW_KERNEL = "the general kernel reads the weights slower than the bandwidth allows"


def around_products(run: Any, row: int) -> float | None:
    """Seconds of the plain step without its products, timed alone: row 0 is the first batch, -1 the last."""
    step = positive(cell(run[STEPS], "plain", row))
    alone = positive(cell(run[PRODUCTS], "F.linear, float32", row))
    return step - alone if step and alone and step > alone else None


def packed_prediction(run: Any, row: int) -> tuple[float | None, Measured]:
    """(predicted, measured) seconds of the packed step: packed products, and all else as in the plain step."""
    rest, packed = around_products(run, row), positive(cell(run[PRODUCTS], "packed, float32", row))
    steps = run[STEPS]
    same = column(steps, "batch") and column(run[PRODUCTS], "batch")
    same = same and cell(steps, "batch", row) == cell(run[PRODUCTS], "batch", row)
    measured = cell(steps, named(steps, PACKED), row)
    return (rest + packed if rest and packed and same else None), measured


def kernels(run: Any) -> dict[str, str]:
    """The products alone, by kernel: packed or not, and in bfloat16."""
    series = run[PRODUCTS]
    names = "the packed layout", "the plain one"
    one, many = (
        compare(*(cell(series, f"{k}, float32", row) for k in ("packed", "F.linear")), *names)
        for row in (0, -1)
    )
    if "missing" in (one.kind, many.kind):
        packing = missing("the packed layout").sentence
        bounds = packing
    else:
        packing = f"For one sequence, {one}; at {last_batch(series)}, {many}."
        if one.direction < 0:
            packing += (
                " It is the same arithmetic on the same bytes, so the difference lies in the way the kernel reads. "
                "A profile counts it as computing, and a count of operators does not show it."
            )
        over = [
            versus_bound(cell(series, "bound float32", row), cell(series, "packed, float32", row))
            for row in (0, -1)
        ]
        bounds = f"The packed products' time at batch 1 is {over[0]}; at {last_batch(series)} it is {over[1]}."
        if "missing" in (over[0].kind, over[1].kind):
            bounds = missing("the packed products over their bound").sentence
    halves = [
        compare(cell(series, f"{kernel}, bfloat16", 0), cell(series, f"{kernel}, float32", 0),
                "bfloat16", "float32")
        for kernel in ("packed", "F.linear")
    ]  # fmt: skip
    half = ""
    for found, layout in zip(halves, ("packed", "not packed")):
        if found.kind != "missing":
            half += f"{'Bfloat16 has half the bytes. ' if not half else ' '}{capital(layout)}, at batch 1, {found}."
            if found.kind in ("number", "several") and found.ratio < 1 / 2.2:
                half += " The bytes alone explain 2 times at most, so the two kernels differ too."
    head = compare(
        *(cell(series, f"{k}, float32", 0) for k in ("packed", "F.linear")),
        "a kernel whose weights are laid out for it",
        "the usual one",
    )
    return {
        "head_kernel_finding": f"For the products of one sequence's step, {head}."
        if head.kind != "missing"
        else packing,
        "packing_finding": of_record(run, packing),
        "packed_bound_finding": bounds,
        "half_finding": half or missing("bfloat16").sentence,
    }


def slow_products(run: Any) -> str:
    """The measured reason for a step above bound and starts: the products alone, over their bound; or nothing."""
    series = run[PRODUCTS]
    alone, bound = (
        positive(cell(series, name, 0)) for name in ("F.linear, float32", "bound float32")
    )
    if not alone or not bound or alone <= 1.25 * bound:
        return ""
    return (
        f"the products alone take {times(alone / bound)} their bound, since {SLOW_KERNEL}"
        if _kernel_matters(series)
        else f"the products alone take {times(alone / bound)} their bound"
    )


def _kernel_matters(series: Series) -> bool:
    fast = compare(
        cell(series, "packed, float32", 0), cell(series, "F.linear, float32", 0), "a", "b"
    )
    return fast.direction < 0
