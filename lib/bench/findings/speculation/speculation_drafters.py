"""Ways to draft beside each other: n-grams and the time of a look-up, early exits, a small model.

Each function takes a run and returns sentences of chapter 10.

Introduced in chapter 10.
"""

from collections.abc import Sequence
from typing import Any

from lib.bench.findings.run_notes import of_record
from lib.bench.findings.speculation.speculation_rows import known_cells
from lib.bench.findings.values import cell, cell_of, listed, over, percent, quantity, times, value
from lib.bench.findings.vocabulary import missing, share


def lookup(run: Any) -> dict[str, str]:
    """The time of one n-gram look-up, as a share of a step of one row."""
    found = over(cell(run["proposer"], "seconds", 0), cell(run["step_by_rows"], "step", 0))
    if found is None:
        return {"lookup_finding": missing("the time of a look-up").sentence}
    took = quantity(value(cell(run["proposer"], "seconds", 0)).middle, "s")
    tokens = value(cell(run["proposer"], "tokens", 0)).middle
    text = "A text" if tokens is None else f"A text of {tokens:,.0f} random tokens"
    text += f" has to be searched to its beginning. This takes {took}, {share(found)} of the time "
    return {"lookup_finding": f"{text}of a step of one row."}


def early_exit(run: Any) -> dict[str, str]:
    """Which exits guess better than they cost."""
    series = run["early_exit"]
    points = []
    for row in range(len(series["layers"]) if series is not None and "layers" in series else 0):
        alpha, c = (value(cell(series, name, row)).middle for name in ("acceptance", "cost"))
        if alpha is not None and c is not None:
            points.append((series["layers"][row], alpha, c))
    text = missing("the acceptance of early exits").sentence
    if points:
        gaining = [str(layers) for layers, alpha, c in points if alpha > c]
        layers, alpha, c = max(points, key=lambda point: point[1] - point[2])
        closest = f"After {_layers(layers)} α is {alpha:.2f} and c is {c:.2f}."
        text = (
            f"No exit that was tried has an α above its c, so none is predicted to gain. {closest}"
        )
        if gaining:
            those = "this exit is" if len(gaining) == 1 else "these exits are"
            after = _layers(listed(gaining))
            text = f"α is above c after {after}, so {those} predicted to gain. {closest}"
    return {"exit_finding": text}


def _layers(count: int | str) -> str:
    return f"{count} layer" if str(count) == "1" else f"{count} layers"


def methods(run: Any) -> dict[str, str]:
    """Which way to draft is fastest at batch 1, and which are slower than no drafts."""
    series = run["methods"]
    rates = known_cells(series, "tok_s")
    drafted = {name: rate for name, rate in rates.items() if name != "no drafts"}
    if not drafted or "no drafts" not in rates:
        return {"methods_finding": missing("the ways to draft").sentence}
    samples = {name: value(cell_of(series, name, "tok_s")) for name in rates}
    best = max(drafted, key=drafted.get)
    ratio = rates[best] / rates["no drafts"]
    if rivals := [n for n in drafted if n != best and samples[n].overlaps(samples[best])]:
        text = (
            f"This run cannot tell which is the fastest of {_quoted([best, *rivals])}; “{best}” has"
        )
    else:
        text = f"The fastest way to draft is “{best}”, with"
    text += f" {times(ratio)} the throughput without drafts."
    near = [name for name in drafted if samples[name].overlaps(samples["no drafts"])]
    losing = [name for name in drafted if name not in near and rates[name] < rates["no drafts"]]
    if losing:
        text += f" Slower than no drafts: {_quoted(losing)}."
    if near:
        text += (
            f" Whether drafts gain with {_quoted(near)} this run cannot tell: the repeats overlap."
        )
    return {"methods_finding": of_record(run, text, under_table=True)}


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"“{name}”" for name in names)


def draft_model(run: Any) -> dict[str, str]:
    """What a small checkpoint gives as the draft of a large one."""
    series = run["draft_model"]
    found = over(cell_of(series, "draft model", "tok_s"), cell_of(series, "no drafts", "tok_s"))
    accepted = value(cell_of(series, "draft model", "acceptance")).middle
    if found is None or accepted is None:
        return {"draft_model_finding": missing("a pair of models of two sizes").sentence}
    text = f"With the small model as its draft the large one has {times(found)} the throughput"
    text += f"; {percent(accepted)} of the drafts are accepted."
    return {"draft_model_finding": of_record(run, text)}
