"""Engines by the time of a step: packed, compiled, replayed, and flat against a tree of modules.

Each function takes a run; most return sentences of chapter 8.

Introduced in chapter 8.
"""

from typing import Any

from lib.bench.findings.curves import growth, ordering
from lib.bench.findings.launch_overhead.overhead_rows import (
    COMPILED,
    NAMES,
    PACKED,
    STEPS,
    last_batch,
    named,
)
from lib.bench.findings.values import cell, number, percent, positive, quantity, value
from lib.bench.findings.vocabulary import capital, compare, missing, versus_bound
from lib.bench.records.series import Series


def steps(run: Any) -> dict[str, str]:
    """Engines by batch: which is fastest, what compiling and what graphs change."""
    series = run[STEPS]
    engines = [n for n in NAMES if series is not None and n in series]
    ranked = []
    for row, where in ((0, "batch 1"), (-1, last_batch(series))):
        order = ordering({NAMES[n]: cell(series, n, row) for n in engines}) if engines else None
        ranked.append(None if order is None else f"at {where}, {order}")
    best = missing("the step by batch").sentence
    if all(ranked) and "not measured" not in "".join(ranked):
        best = f"The engines by the time of a step, the fastest first: {ranked[0]}; {ranked[1]}."
        first = min((positive(cell(series, n, 0)) or float("inf")) for n in engines)
        over = versus_bound(cell(series, "bound", 0), first)
        if over.kind != "missing":
            best += f" The time of the fastest step at batch 1 is {over}."
    return {"best_finding": best} | _compiled(run) | _graphs(series)


def _compiled(run: Any) -> dict[str, str]:
    series, base = run[STEPS], named(run[STEPS], (*PACKED, "plain"))
    top = named(series, COMPILED)
    names = NAMES[top], NAMES[base]
    found = [compare(cell(series, top, row), cell(series, base, row), *names) for row in (0, -1)]
    if "missing" in (found[0].kind, found[1].kind):
        judged = missing("what compiling changes").sentence
    else:
        judged = f"At batch 1, {found[0]}; at {last_batch(series)}, {found[1]}."
        if all(f.kind == "about" or f.direction > 0 for f in found):
            judged += (
                " So here guards and wrappers cost as much as the compiled loops save, or more."
            )
    seconds, before, after = (
        value(cell(run["compile"], name, 0)).middle for name in ("seconds", "before", "after")
    )
    count = missing("the number of operators in a compiled step").sentence
    if positive(before) and positive(after):
        what = (
            "launches of kernels" if value(cell(run["graphs"], "seconds", 0)).known else "operators"
        )
        count = f"The profiler counts {number(after)} {what} in a step with compiled functions and {number(before)} without."
    if seconds is None:
        took = missing("the time to compile").sentence
    elif seconds <= 0:
        took = "On this machine torch.compile does not work, so this engine runs eagerly, and its numbers show no difference."
    else:
        took = (
            f"Compiling took {quantity(seconds, 's')}. What is compiled is kept on disk, where a later start "
            "finds it."
        )
    load = missing("the time to compile").sentence
    if positive(seconds):
        load = f"Compiling took {quantity(seconds, 's')} at load, which no bar of the last figure contains."
    return {
        "compile_finding": judged,
        "compile_count_finding": count,
        "compile_seconds_finding": took,
        "compile_load_finding": load,
    }


def _graphs(series: Series | None) -> dict[str, str]:
    found = compare(
        cell(series, "graphs", 0), cell(series, "plain", 0), NAMES["graphs"], NAMES["plain"]
    )
    said = f"At batch 1, {found}." if found.kind != "missing" else ""
    return {"graphs_finding": said or "Graphs were not measured here: they need a GPU."}


def modules(run: Any) -> dict[str, str]:
    """The model as one flat function against the model as a tree of modules."""
    flat, tree = (cell(run["modules"], name, 0) for name in ("flat", "modules"))
    found = compare(flat, tree, "the step with a flat function", "the step with modules")
    said = found.sentence
    saved = growth(tree, flat)
    if found.kind == "about" and saved and 0.005 < 1 - saved:
        said = f"{found.text}: the flat one takes {percent(1 - saved)} less."
    if found.kind != "cannot tell" and saved and 0.005 < 1 - saved:
        said += " This is the most that the modules can cost."
    return {"modules_finding": capital(said)}
