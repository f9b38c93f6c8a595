"""One decode step against its bound, and what starting its operators should explain.

Each function takes a run; most return sentences of chapter 8.

Introduced in chapter 8.
"""

from typing import Any

from lib.bench.findings.launch_overhead.overhead_rows import LAUNCHES, STEPS, last_batch
from lib.bench.findings.run_notes import is_recorded, of_record
from lib.bench.findings.values import cell, number, over, positive, quantity
from lib.bench.findings.vocabulary import missing, share, versus_bound


def starting(run: Any) -> float | None:
    """Seconds for starting every operator of a step at batch 1, each counted and one of them timed."""
    count, each = (positive(cell(run[LAUNCHES], name, 0)) for name in ("operators", "per_operator"))
    return None if count is None or each is None else count * each


def first_tables(run: Any) -> dict[str, str]:
    """Cells of the chapter's first two tables, of the run that its sentences quote; "–" for what was not measured."""
    series, steps = run[LAUNCHES], run[STEPS]
    bound, step = (positive(cell(series, name, 0)) for name in ("bound", "step"))
    rows_bound, rows_step = (positive(cell(steps, name, -1)) for name in ("bound", "plain"))
    counts = (
        positive(cell(series, name, 0)) for name in ("operators", "operators_rows", "computing")
    )
    one, many, computing = ("–" if n is None else number(n) for n in counts)
    found = {"bound_one": bound, "step_one": step, "bound_rows": rows_bound, "step_rows": rows_step}
    found |= {"start_one": positive(cell(series, "per_operator", 0)), "start_all": starting(run)}
    cells = {name: "–" if v is None else quantity(v, "s") for name, v in found.items()}
    ratios = {"over_one": over(step, bound), "over_rows": over(rows_step, rows_bound)}
    cells |= {name: "–" if r is None else f"{r:.1f}" for name, r in ratios.items()}
    return cells | {
        "operators_one": one,
        "operators_rows": many,
        "operators_computing": computing,
        "rows_name": last_batch(steps),
        "rows_where": "" if is_recorded(run) else ", measured further below",
        "whose_steps": run.label if is_recorded(run) else "this run",
    }


def bound_and_count(run: Any) -> dict[str, str]:
    """The step against its bound, and what starting its operators should explain."""
    series, steps = run[LAUNCHES], run[STEPS]
    one = versus_bound(cell(series, "bound", 0), cell(series, "step", 0))
    many = versus_bound(cell(steps, "bound", -1), cell(steps, "plain", -1))
    said = f"For one sequence, the time of a decode step is {one}. At {last_batch(steps)} it is {many}."
    if "missing" in (one.kind, many.kind):
        said = missing("the decode step over its bound").sentence
    count = positive(cell(series, "operators", 0))
    head = missing("the number of operators in a step").sentence
    if count:
        head = f"A decode step passes {number(count)} operators to PyTorch, and a program has to start each of them."
    every, step, bound = (
        starting(run),
        *(positive(cell(series, name, 0)) for name in ("step", "bound")),
    )
    foretold = missing("what starting should explain").sentence
    if every and step and bound:
        each = quantity(positive(cell(series, "per_operator", 0)), "s")
        foretold = f"{number(count)} operators at {each} are {quantity(every, 's')}."
        if step > bound:
            foretold += (
                f" The step is {quantity(step - bound, 's')} above its bound. Starting should explain "
                f"{share(every, step - bound)} of that."
            )
    return {
        "head_count_finding": head,
        "step_finding": of_record(run, said),
        "starting_finding": of_record(run, foretold),
    }
