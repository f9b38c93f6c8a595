"""One decode step taken to pieces: its bound, what is started, what Python does, and the kernel of the products.

Each function takes a run and returns sentences of chapter 8. Introduced in chapter 8.
"""

from typing import Any

from lib.bench.findings.curves import growth
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
from lib.bench.findings.vocabulary import Finding, capital, compare, missing, share, versus_bound
from lib.bench.records.series import Series

LAUNCHES, KINDS, PRODUCTS, STEPS = "launches", "time_by_kind", "products", "step_by_batch"
PACKED = (
    "packed",
    "packed where faster",
)  # the second in records made before the rule read no clock
COMPILED = ("packed and compiled", "compiled")
SLOW_KERNEL = "the general kernel reads the weights slower than the bandwidth allows"


def named(series: Series | None, names: tuple[str, ...]) -> str:
    """The first of `names` that the series has as a column; the first of all where it has none."""
    found = [n for n in names if series is not None and n in series]
    return found[0] if found else names[0]


def middle(measured: Measured) -> float | None:
    """The measured value's middle where it is above zero, else None."""
    found = value(measured).middle
    return found if found and found > 0 else None


def last_batch(series: Series | None) -> str:
    """ "batch 64": the last row's batch."""
    batch = value(cell(series, "batch", -1)).middle
    return "the largest batch" if batch is None else f"batch {number(batch)}"


def starting(run: Any) -> float | None:
    """Seconds for starting every operator of a step at batch 1, each counted and one of them timed."""
    count, each = (middle(cell(run[LAUNCHES], name, 0)) for name in ("operators", "per_operator"))
    return None if count is None or each is None else count * each


def kinds(run: Any, row: str) -> dict[str, float]:
    """Share of the plain step's time by kind, row="first" or "last" batch; empty where a share was not measured."""
    series = run[KINDS]
    if series is None or "engine" not in series:
        return {}
    rows = [r for r in series.rows() if r["engine"] == "plain"]
    if not rows:
        return {}
    found = rows[0 if row == "first" else -1]
    names = ("matrix products", "attention kernel", "other operators", "Python")
    if any(not isinstance(found.get(name), (int, float)) or found[name] < 0 for name in names):
        return {}
    return {name: found[name] for name in names}


def python_calls(run: Any) -> tuple[Measured, Measured]:
    """Calls of Python functions in a plain step, at the first batch and at the last."""
    series = run[KINDS]
    if series is None or "engine" not in series:
        return None, None
    at = [i for i, name in enumerate(series["engine"]) if name == "plain"]
    return tuple(cell(series, "python_calls", at[i]) for i in (0, -1)) if at else (None, None)


def python_seconds(run: Any) -> float | None:
    """Seconds of Python itself in a plain step at batch 1: its share of the profile times the unwatched step."""
    shares, step = kinds(run, "first"), middle(cell(run[LAUNCHES], "step", 0))
    return shares["Python"] * step if shares and step else None


def bound_and_count(run: Any) -> dict[str, str]:
    """The step against its bound, and what starting its operators should explain."""
    series, steps = run[LAUNCHES], run[STEPS]
    one = versus_bound(cell(series, "bound", 0), cell(series, "step", 0))
    many = versus_bound(cell(steps, "bound", -1), cell(steps, "plain", -1))
    said = f"For one sequence, the time of a decode step is {one}. At {last_batch(steps)} it is {many}."
    if "missing" in (one.kind, many.kind):
        said = missing("the decode step over its bound").sentence
    count = middle(cell(series, "operators", 0))
    head = missing("the number of operators in a step").sentence
    if count:
        head = f"A decode step passes {number(count)} operators to PyTorch, and a program has to start each of them."
    every, step, bound = (
        starting(run),
        *(middle(cell(series, name, 0)) for name in ("step", "bound")),
    )
    foretold = missing("what starting should explain").sentence
    if every and step and bound:
        each = quantity(middle(cell(series, "per_operator", 0)), "s")
        foretold = f"{number(count)} operators at {each} are {quantity(every, 's')}."
        if step > bound:
            foretold += (
                f" The step is {quantity(step - bound, 's')} above its bound. Starting should explain "
                f"{share(every, step - bound)} of that."
            )
    return {"head_count_finding": head, "step_finding": said, "starting_finding": foretold}


def by_kind(run: Any) -> dict[str, str]:
    """What the profile shows: the largest part, the products against their bound, and what a larger batch changes."""
    few, series = kinds(run, "first"), run[LAUNCHES]
    step, bound = (middle(cell(series, name, 0)) for name in ("step", "bound"))
    if not few:
        gone = missing("the time by kind").sentence
        return {"kinds_finding": gone, "suspect_finding": gone, "calls_finding": gone}
    order = sorted(few, key=few.get, reverse=True)
    parts = [f"{_kind_name(k)} ({percent(few[k])})" for k in order]
    calls = value(python_calls(run)[0]).middle
    counted = f" The step makes {number(calls)} calls of Python functions." if calls else ""
    largest = (
        f"The largest part is {parts[0]}, then {', '.join(parts[1:-1])} and {parts[-1]}.{counted}"
    )
    suspect = missing("the products' time in the step").sentence
    if value(cell(run["graphs"], "seconds", 0)).known:
        suspect = (
            "On a GPU these frames hold the launches of the products, not the time that they take."
        )
    elif step and bound:
        inside = few["matrix products"] * step
        over = versus_bound(bound, inside)
        if over.kind == "missing":
            suspect = missing("the products' time in the step").sentence
        else:
            suspect = f"The products' time in the step is {over}."
            if step > bound:
                more = inside - bound > 0.5 * (step - bound)
                suspect += (
                    " So the likely cause is the kernel of the largest operations, and not their number."
                    if more
                    else " So the larger part of the time above the bound lies around the products."
                )
    return {
        "kinds_finding": largest,
        "suspect_finding": suspect,
        "calls_finding": _larger_batch(run),
    }


def _kind_name(kind: str) -> str:
    return {
        "matrix products": "the matrix products",
        "attention kernel": "the attention kernel",
        "other operators": "other operators",
        "Python": "Python itself",
    }[kind]


def around_shares(run: Any) -> tuple[float | None, float | None]:
    """Share of Python and the small operators together, in a plain step at the first batch and at the last."""
    found = (kinds(run, "first"), kinds(run, "last"))
    first, last = (k["Python"] + k["other operators"] if k else None for k in found)
    return first, last


def share_trend(run: Any) -> Finding:
    """Whether that share falls with the batch: "falls", "flat" or "rises"."""
    first, last = around_shares(run)
    grown = growth(first, last)
    if grown is None:
        return missing("the share at two batches")
    ends = f"from {percent(first)} to {percent(last)}"
    if 1 / 1.1 <= grown <= 1.1:
        return Finding(f"stays about the same ({ends})", "flat", grown)
    word, side = ("rises", 1) if grown > 1 else ("falls", -1)
    return Finding(f"{word} {ends}", word, grown, side)


def around_growth(run: Any) -> float | None:
    """How many times the seconds of Python and the small operators grow from the first batch to the last."""
    first, last = around_shares(run)
    steps = [middle(cell(run[STEPS], "plain", row)) for row in (0, -1)]
    if not first or not last or None in steps:
        return None
    return growth(first * steps[0], last * steps[1])


def more_calls(run: Any) -> str:
    """Why the share does not fall: the growth of its time and, where counted, of the calls; empty without growth."""
    grown = around_growth(run)
    if grown is None or grown <= 1.25:
        return ""
    said = f"in time this part grows {times(grown)}"
    few, many = python_calls(run)
    calls = growth(few, many)
    if calls is None or calls <= 1.25:
        return said
    counts = (
        f"{number(value(few).middle)} calls of Python functions become {number(value(many).middle)}"
    )
    return f"{said}: {counts}, since the scheduler, the sampler and the detokenizer take the sequences one by one"


def _larger_batch(run: Any) -> str:
    shape = share_trend(run)
    if shape.kind == "missing":
        return shape.sentence
    verdict = "as predicted" if shape.kind == "falls" else "so the prediction failed"
    said = (
        f"With the batch, the share of Python and the small operators together {shape}, {verdict}."
    )
    why = more_calls(run)
    return f"{said} {capital(why)}." if why and shape.kind != "falls" else said


def around_products(run: Any, row: int) -> float | None:
    """Seconds of the plain step without its products, timed alone: row 0 is the first batch, -1 the last."""
    step = middle(cell(run[STEPS], "plain", row))
    alone = middle(cell(run[PRODUCTS], "F.linear, float32", row))
    return step - alone if step and alone and step > alone else None


def packed_prediction(run: Any, row: int) -> tuple[float | None, Measured]:
    """(predicted, measured) seconds of the packed step: packed products, and all else as in the plain step."""
    rest, packed = around_products(run, row), middle(cell(run[PRODUCTS], "packed, float32", row))
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
        bounds = (
            f"Packed, their time at batch 1 is {over[0]}; at {last_batch(series)} it is {over[1]}."
        )
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
    return {
        "head_kernel_finding": f"{capital(one.text)}." if one.kind != "missing" else packing,
        "packing_finding": packing,
        "packed_bound_finding": bounds,
        "half_finding": half or missing("bfloat16").sentence,
    }


def slow_products(run: Any) -> str:
    """The measured reason for a step above bound and starts: the products alone, over their bound; or nothing."""
    series = run[PRODUCTS]
    alone, bound = (
        middle(cell(series, name, 0)) for name in ("F.linear, float32", "bound float32")
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
