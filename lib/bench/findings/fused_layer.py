"""One layer's decode attention in three ways: by batch, by context, and by a model that adds warm caches and bytes.

Introduced in chapter 7.
"""

from collections.abc import Sequence
from typing import Any

from lib.bench.findings.values import (
    Measured,
    cell,
    number,
    percent,
    times,
    value,
)
from lib.bench.findings.vocabulary import (
    Finding,
    compare,
    missing,
    versus_prediction,
)

BATCH, CONTEXT, HOT = "attention_by_batch", "attention_by_context", "hot_and_cold"
KINDS = {"contiguous": "the contiguous read", "gather": "the gather", "fused": "the fused kernel"}
TRANSFERS = {"contiguous": 1, "gather": 3, "fused": 1}  # times that each key and value moves
WARM = "one layer again and again"


def positive(measured: Measured) -> float | None:
    """The middle of a measured value, where it is above zero."""
    found = value(measured).middle
    return found if found is not None and found > 0 else None


def over(a: Measured, b: Measured) -> float | None:
    """a over b by their middles; None where one is missing or not above zero."""
    x, y = positive(a), positive(b)
    return x / y if x and y else None


def largest(run: Any, column: str) -> Measured:
    """The value at the largest batch."""
    return cell(run[BATCH], column, -1)


def foretold(run: Any, kind: str) -> float | None:
    """Time over the contiguous read's, by the bytes: 3 for the gather, less where arithmetic is the bound."""
    if kind != "gather":
        return 1.0
    return over(largest(run, "bound_gather"), largest(run, "bound"))


def measured(run: Any, kind: str) -> float | None:
    """Time over the contiguous read's at the largest batch."""
    return over(largest(run, kind), largest(run, "contiguous"))


def judged(run: Any, kind: str, predicted: float | None) -> Finding:
    """The verdict on a predicted ratio to the contiguous read."""
    return versus_prediction(predicted, measured(run, kind), "×")


def where(run: Any) -> str:
    """The largest batch and its context: "At batch 64 and 512 tokens"."""
    batch, context = positive(largest(run, "batch")), positive(largest(run, "context"))
    if batch is None or context is None:
        return "At the largest batch"
    return f"At batch {number(batch)} and {number(context)} tokens"


def versus_scaled(factor: float | None, base: Measured, got: Measured) -> Finding:
    """The verdict on "`got` is `factor` times `base`", by all repeats of both."""
    samples = base if isinstance(base, list) else [base]
    known = [factor * s for s in samples if s is not None and factor is not None]
    return versus_prediction(known or None, got)


def verdict_of(run: Any, kind: str) -> str:
    """What the bytes say, and whether it is so; nothing where one of the two is missing."""
    want = foretold(run, kind)
    found = versus_scaled(want, largest(run, "contiguous"), largest(run, kind))
    if want is None or found.kind == "missing":
        return ""
    if kind != "gather":
        return f". The bytes predict the same time: {found.verdict}"
    return f". The bytes predict {times(want)}: {found.verdict}"


def layer(run: Any) -> dict[str, str]:
    """The sentences under the figure of bandwidth and its tables."""
    at = {kind: largest(run, kind) for kind in KINDS}
    gather = compare(at["gather"], at["contiguous"], KINDS["gather"], KINDS["contiguous"])
    fused = compare(at["fused"], at["contiguous"], KINDS["fused"], KINDS["contiguous"])
    both = compare(at["gather"], at["fused"], KINDS["gather"], KINDS["fused"])
    return {
        "layer_gather_finding": f"{where(run)}, {gather}{verdict_of(run, 'gather')}.",
        "layer_fused_finding": f"{fused.sentence[:-1]}{verdict_of(run, 'fused')}.",
        "gather_fused_finding": both.sentence,
        "bandwidth_finding": _bandwidth(run),
        "range_finding": _ranges(run),
        "half_finding": _half(run),
        "baseline_finding": _baseline(run),
    }


def warm_caches(run: Any) -> dict[str, str]:
    """What is left of the time in warm caches, and the model that adds it to the bytes."""
    return {"warm_finding": _warm(run), "second_model_finding": _second_model(run)}


def broke(run: Any) -> dict[str, str]:
    """What became of "bytes are time"."""
    found = {kind: judged(run, kind, foretold(run, kind)) for kind in ("gather", "fused")}
    kinds = {verdict.kind for verdict in found.values()}
    if "missing" in kinds:
        return {"broke_finding": missing("what became of it").sentence}
    said = _and([f"{KINDS[kind]} took {times(measured(run, kind))}" for kind in found])
    said = f"Measured over the contiguous read, {said}"
    if kinds == {"about"}:
        return {"broke_finding": f"{said}, as predicted in this run."}
    slow = positive(largest(run, "mbu_contiguous"))
    why = ""
    if slow and slow < 0.5:
        why = f" The contiguous read itself uses only {percent(slow)} of the bandwidth, so its time is not the time of its bytes."
    failed = "so the prediction failed" if "failed" in kinds else "not quite as predicted"
    return {"broke_finding": f"{said}, {failed}.{why}"}


def _bandwidth(run: Any) -> str:
    shares = {kind: positive(largest(run, f"mbu_{kind}")) for kind in ("fused", "contiguous", "gather")}  # fmt: skip
    known = {kind: s for kind, s in shares.items() if s}
    if not known:
        return missing("the bandwidth that attention achieves").sentence
    first, *others = (f"{KINDS[kind]} {{}}{percent(s)}" for kind, s in known.items())
    listed = _and([first.format("uses "), *(other.format("") for other in others)])
    said = f"With each byte counted once, {listed} of the machine's bandwidth."
    if max(known.values()) > 1.1:
        said += " More than all of it is possible only where the ceiling was measured too low."
    return said


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _ranges(run: Any) -> str:
    ratios: dict[str, dict[tuple, float]] = {"gather": {}, "fused": {}}
    for series in (run[BATCH], run[CONTEXT]):
        for row in range(len(series["batch"]) if series is not None and "batch" in series else 0):
            at = tuple(positive(cell(series, name, row)) for name in ("batch", "context"))
            for kind, found in ratios.items():
                if r := over(cell(series, kind, row), cell(series, "contiguous", row)):
                    found[at] = r
    if not all(ratios.values()):
        return missing("the range of the ratios").sentence
    gather, fused = (
        f"{times(min(r.values())).removesuffix(' times')} to {times(max(r.values()))}"
        for r in ratios.values()
    )
    return (
        f"Over all points of the figure, the gather takes {gather} as long as the contiguous read, and the fused kernel "
        f"{fused} as long."
    )


def _half(run: Any) -> str:
    name = (run[BATCH].params if run[BATCH] is not None else {}).get("half", "half precision")
    found = {
        kind: compare(largest(run, f"{kind}_half"), largest(run, kind), f"{KINDS[kind]} in {name}", "in float32")
        for kind in ("fused", "contiguous")
    }  # fmt: skip
    said = f"In {name} the bytes halve, so bytes alone would make both twice as fast. "
    said += f"{found['fused'].sentence} {found['contiguous'].sentence}"
    ratio, warm = over(largest(run, "fused"), largest(run, "fused_half")), warm_share(run, "fused")
    on_cpu = run.roofline is not None and run.roofline.device.startswith("cpu")
    if on_cpu and ratio and ratio < 1.8 and warm and warm > 0.45:
        said += (
            " The arithmetic stays the same: two bytes are widened to four, and then there are as many "
            "multiplications as before. The next section shows how much of the time that is."
        )
    return said


# The model that adds: what is left in warm caches, plus the bytes.


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


def _warm(run: Any) -> str:
    shares = {kind: warm_share(run, kind) for kind in KINDS}
    if None in shares.values():
        return missing("the time with warm caches").sentence
    first, *others = (f"{KINDS[kind]} {{}}{percent(s)}" for kind, s in shares.items())
    listed = _and([first.format("still takes "), *(other.format("") for other in others)])
    said = f"Where the keys are in the processor's caches already, {listed} of its time with emptied caches."
    if min(shares.values()) > 0.45:
        said += (
            " That part is arithmetic and overhead, and more bandwidth would not shorten it. The "
            "prediction had left it out: it "
            "counted arithmetic at the rate of large matrix products. The small products, exponentials and table lookups "
            "of attention run at a lower one."
        )
    elif max(shares.values()) < 0.45:
        said += " So most of the time is spent on memory, as the prediction assumed."
    return said


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


def _baseline(run: Any) -> str:
    found = positive(largest(run, "mbu_contiguous"))
    if found is None:
        return missing("the bandwidth of the contiguous read").sentence
    said = f"Here it uses {percent(found)} of the bandwidth"
    if found < 0.5:
        return (
            f"{said}, so a kernel that is faster than it may still be far from the machine's limit."
        )
    if found > 1.1:
        return f"{said}, which no read can, so the ceiling was measured too low."
    return f"{said}, so there is not much to gain over it."
