"""The model that adds: what is left in warm caches, plus the bytes.

Introduced in chapter 7.
"""

from typing import Any

from lib.bench.findings.fused_attention.fused_rows import (
    HOT,
    KINDS,
    TRANSFERS,
    judged,
    largest,
    measured,
)
from lib.bench.findings.run_notes import of_record
from lib.bench.findings.values import Measured, cell, listed, over, percent, positive, times
from lib.bench.findings.vocabulary import compare, missing


def _protocol_row(run: Any, last: bool) -> int | None:
    series = run[HOT]
    if series is None or "protocol" not in series:
        return None
    return len(series["protocol"]) - 1 if last else 0


def hot(run: Any, kind: str, last: bool = True) -> Measured:
    """Seconds of a layer with warm caches (`last`), or with caches emptied before."""
    row = _protocol_row(run, last)
    return None if row is None else cell(run[HOT], kind, row)


def warm_share(run: Any, kind: str) -> float | None:
    """What is left of the time where the keys are in the processor's caches."""
    return over(hot(run, kind), hot(run, kind, last=False))


def added(run: Any, kind: str) -> float | None:
    """Seconds by the second model at the largest batch: the warm time in proportion to the keys, plus the bytes."""
    series, warm, moved = run[HOT], positive(hot(run, kind)), positive(largest(run, "kv_bytes"))
    batch, context = positive(largest(run, "batch")), positive(largest(run, "context"))
    if None in (warm, moved, batch, context) or run.roofline is None:
        return None
    there = series.params["batch"] * series.params["context"]
    return warm * batch * context / there + TRANSFERS[kind] * moved / run.roofline.bandwidth


def added_ratio(run: Any, kind: str) -> float | None:
    """Time over the contiguous read's, by the second model."""
    return over(added(run, kind), added(run, "contiguous"))


def warm_caches(run: Any) -> dict[str, str]:
    """What is left of the time in warm caches, and the model that adds it to the bytes."""
    return {
        "warm_finding": of_record(run, _warm(run)),
        "in_turn_finding": _in_turn(run),
        "second_model_finding": _second_model(run),
    }


def _warm(run: Any) -> str:
    shares = {kind: warm_share(run, kind) for kind in KINDS}
    if None in shares.values():
        return missing("the time with warm caches").sentence
    first, *others = (f"{KINDS[kind]} {{}}{percent(s)}" for kind, s in shares.items())
    parts = listed([first.format("still takes "), *(other.format("") for other in others)])
    said = f"Where the keys are in the processor's caches already, {parts} of its time with emptied caches."
    if max(shares.values()) >= 0.995:
        said += " Where that is all of the time, this run does not show what memory takes."
    elif min(shares.values()) > 0.45:
        said += (
            " That part is arithmetic and overhead, and more bandwidth would not shorten it. The "
            "prediction had left it out: it "
            "counted arithmetic at the rate of large matrix products. The small products, exponentials and table lookups "
            "of attention run at a lower one."
        )
    elif max(shares.values()) < 0.45:
        said += " So most of the time is spent on memory, as the prediction assumed."
    return said


def _in_turn(run: Any) -> str:
    """All layers in turn with nothing emptied: between emptied caches and warm ones, or against what the section says."""
    series = run[HOT]
    if series is None or len(series.columns.get("protocol", ())) != 3:
        return missing("the time with nothing emptied").sentence
    emptied = {
        kind: compare(cell(series, kind, 1), cell(series, kind, 0), "", "") for kind in KINDS
    }
    if any(found.ratio is None for found in emptied.values()):
        return missing("the time with nothing emptied").sentence
    sides = {"slower": [], "faster": [], "about as long": [], "unclear": []}
    for kind, found in emptied.items():
        name = f"{KINDS[kind]} ({times(found.ratio)})"
        if found.kind == "cannot tell":
            sides["unclear"].append(name)
        else:
            side = {1: "slower", -1: "faster"}.get(found.direction, "about as long")
            sides[side].append(name)
    words = {
        "faster": "less time than with emptied caches",
        "about as long": "about as long as with emptied caches",
        "slower": "longer than with emptied caches",
    }
    parts = [
        f"{listed(sides[side])} {'takes' if len(sides[side]) == 1 else 'take'} {text}"
        for side, text in words.items()
        if sides[side]
    ]
    said = f"With all layers in turn and nothing emptied, {', '.join(parts)}." if parts else ""
    if sides["unclear"]:
        said += f" This run cannot tell what emptying the caches changes for {listed(sides['unclear'])}."
    if sides["slower"]:
        said += " Caches do not explain a longer time, and no cause of it was measured."
    return said.strip()


def second_model_rows(run: Any) -> list[list[str]]:
    """Kind, time by bytes, warm time in proportion, their sum, measured, measured over the sum."""
    rows = []
    for kind in KINDS:
        total, got = added(run, kind), positive(largest(run, kind))
        moved = positive(largest(run, "kv_bytes"))
        if total is None or moved is None:
            return []
        by_bytes = TRANSFERS[kind] * moved / run.roofline.bandwidth
        ratio = "–" if got is None else f"{got / total:.2f}"
        cells = [1e6 * by_bytes, 1e6 * (total - by_bytes), 1e6 * total, got and 1e6 * got]
        rows.append([kind, *("–" if c is None else f"{c:,.0f}" for c in cells), ratio])
    return rows


def _second_model(run: Any) -> str:
    found = {kind: (added_ratio(run, kind), judged(run, kind, added_ratio(run, kind))) for kind in ("gather", "fused")}  # fmt: skip
    if any(want is None or verdict.kind == "missing" for want, verdict in found.values()):
        return missing("the second model").sentence
    gather, fused = (
        f"{times(want)} ({verdict.verdict}: measured {times(measured(run, kind))})"
        for kind, (want, verdict) in found.items()
    )
    said = f"By this model the gather takes {gather} and the fused kernel {fused} as long as the contiguous read."
    late = over(largest(run, "contiguous"), added(run, "contiguous"))
    early = over(largest(run, "fused"), added(run, "fused"))
    if late and early and early < 0.9 and late > 1.1:
        said += (
            " The sum is too high for the fused kernel, so it computes while keys arrive; and too low for the contiguous "
            "read, which takes longer than both one after the other."
        )
    return said
