"""What a profile of the step shows: time by kind, calls of Python, what a larger batch changes.

Each function takes a run; most return sentences of chapter 8.

Introduced in chapter 8.
"""

from typing import Any

from lib.bench.findings.curves import growth
from lib.bench.findings.launch_overhead.overhead_rows import KINDS, LAUNCHES, STEPS
from lib.bench.findings.run_notes import is_recorded, of_record
from lib.bench.findings.values import Measured, cell, number, percent, positive, times, value
from lib.bench.findings.vocabulary import Finding, capital, missing, versus_bound


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
    shares, step = kinds(run, "first"), positive(cell(run[LAUNCHES], "step", 0))
    return shares["Python"] * step if shares and step else None


def by_kind(run: Any) -> dict[str, str]:
    """What the profile shows: the largest part, the products against their bound, and what a larger batch changes."""
    few, series = kinds(run, "first"), run[LAUNCHES]
    step, bound = (positive(cell(series, name, 0)) for name in ("step", "bound"))
    if not few:
        gone = missing("the time by kind").sentence
        return {"kinds_finding": gone, "suspect_finding": gone, "calls_finding": gone}
    order = sorted(few, key=few.get, reverse=True)
    parts = [f"{_kind_name(k)} ({percent(few[k])})" for k in order]
    calls = value(python_calls(run)[0]).middle
    counted = f" The step makes {number(calls)} calls of Python functions." if calls else ""
    largest = of_record(
        run,
        f"The largest part is {parts[0]}, then {', '.join(parts[1:-1])} and {parts[-1]}.{counted}",
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
        "suspect_finding": of_record(run, suspect),
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
    # The step that the sentences quote: at batch 1 the one that was timed first.
    steps = [positive(cell(run[LAUNCHES], "step", 0)), positive(cell(run[STEPS], "plain", -1))]
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


def own_profile(run: Any) -> dict[str, str]:
    """Whose steps the drawings of single frames show: always this copy's, whatever run the shares beside them are of."""
    if not is_recorded(run):
        return {"own_profile_finding": "The frames and the shares are of the same run."}
    said = f"The frames are drawn from this copy's run, and the shares are those of the {run.label}"
    return {"own_profile_finding": f"{said}: the two need not agree."}


def frames_note(run: Any, note: str) -> str:
    """The note under the drawing of the frames. note: that of their gate, empty where it is open."""
    if not note or not is_recorded(run):
        return note
    return f"{note}; these frames are this copy's all the same, and the next figure shows the {run.label}"


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
