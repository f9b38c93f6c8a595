"""One layer's decode attention in three ways: by batch, by context, and against its bytes.

Introduced in chapter 7.
"""

from typing import Any

from lib.bench.findings.fused_attention.fused_rows import (
    BATCH,
    CONTEXT,
    KINDS,
    judged,
    largest,
    measured,
    versus_scaled,
)
from lib.bench.findings.fused_attention.fused_warm import warm_share
from lib.bench.findings.run_notes import of_record
from lib.bench.findings.values import cell, listed, number, over, percent, positive, times
from lib.bench.findings.vocabulary import compare, missing

# A profile of the contiguous read, made once.
_PROFILE = (
    " In a profile on a two-core AMD EPYC, nearly all samples within PyTorch's attention fell into one function of its "
    "mathematics library, a product of small matrices (mkl_blas_def_sgemm_pst; def is the library's variant for any "
    "processor). A decode step gives it only as many rows of queries as share a K/V head, and a matrix product with so few "
    "rows does not come near the rate of a large one. A slow contiguous read makes the gather's copy look cheap and the "
    "fused kernel fast."
)


def _on_cpu(run: Any) -> bool:
    return run.roofline is not None and run.roofline.device.startswith("cpu")


def foretold(run: Any, kind: str) -> float | None:
    """Time over the contiguous read's, by the bytes: 3 for the gather, less where arithmetic is the bound."""
    if kind != "gather":
        return 1.0
    return over(largest(run, "bound_gather"), largest(run, "bound"))


def where(run: Any) -> str:
    """The largest batch and its context: "At batch 64 and 512 tokens"."""
    batch, context = positive(largest(run, "batch")), positive(largest(run, "context"))
    if batch is None or context is None:
        return "At the largest batch"
    return f"At batch {number(batch)} and {number(context)} tokens"


def verdict_of(run: Any, kind: str) -> str:
    """What the bytes say, and whether it is so; nothing where one of the two is missing."""
    want = foretold(run, kind)
    found = versus_scaled(want, largest(run, "contiguous"), largest(run, kind))
    if want is None or found.kind == "missing":
        return ""
    if kind != "gather":
        return f". By the bytes both would take the same time: {found.verdict}"
    return f". By the bytes {KINDS[kind]} would take {times(want)} as long: {found.verdict}"


def layer(run: Any) -> dict[str, str]:
    """The sentences under the figure of bandwidth and its tables."""
    at = {kind: largest(run, kind) for kind in KINDS}
    gather = compare(at["gather"], at["contiguous"], KINDS["gather"], KINDS["contiguous"])
    fused = compare(at["fused"], at["contiguous"], KINDS["fused"], KINDS["contiguous"])
    both = compare(at["gather"], at["fused"], KINDS["gather"], KINDS["fused"])
    return {
        "layer_gather_finding": of_record(
            run, f"{where(run)}, {gather}{verdict_of(run, 'gather')}."
        ),
        "layer_fused_finding": f"{fused.sentence[:-1]}{verdict_of(run, 'fused')}.",
        "gather_fused_finding": both.sentence,
        "bandwidth_finding": _bandwidth(run),
        "range_finding": _ranges(run),
        "half_finding": _half(run),
        "baseline_finding": _baseline(run),
    }


def broke(run: Any) -> dict[str, str]:
    """What became of "bytes are time", and why the read that all is compared with is slow, where it is."""
    found = {kind: judged(run, kind, foretold(run, kind)) for kind in ("gather", "fused")}
    kinds = {verdict.kind for verdict in found.values()}
    if "missing" in kinds:
        return {"broke_finding": missing("what became of it").sentence}
    gather, fused = (times(measured(run, kind)) for kind in ("gather", "fused"))
    said = f"The gather took {gather} and the fused kernel {fused} as long as the contiguous read"
    if kinds == {"about"}:
        return {"broke_finding": f"{said}, as predicted in this run."}
    slow = positive(largest(run, "mbu_contiguous"))
    why = ""
    if slow and slow < 0.5:
        why = f" The contiguous read itself uses only {percent(slow)} of the bandwidth, so its time is not the time of its bytes."
        if _on_cpu(run):
            why += _PROFILE
    failed = "so the prediction failed"
    if "failed" not in kinds:
        failed = "not quite as predicted"
        if "little" not in kinds:
            failed = "and this run cannot tell whether the prediction holds"
    return {"broke_finding": f"{said}, {failed}.{why}"}


def _bandwidth(run: Any) -> str:
    shares = {kind: positive(largest(run, f"mbu_{kind}")) for kind in ("fused", "contiguous", "gather")}  # fmt: skip
    known = {kind: s for kind, s in shares.items() if s}
    if not known:
        return missing("the bandwidth that attention achieves").sentence
    first, *others = (f"{KINDS[kind]} {{}}{percent(s)}" for kind, s in known.items())
    parts = listed([first.format("uses "), *(other.format("") for other in others)])
    said = f"With each byte counted once, {parts} of the machine's bandwidth."
    if max(known.values()) > 1.1:
        said += " More than all of it is possible only where the ceiling was measured too low."
    return said


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
    if _on_cpu(run) and ratio and ratio < 1.8 and warm and warm > 0.45:
        said += (
            " The arithmetic stays the same: two bytes are widened to four, and then there are as many "
            "multiplications as before. The next section shows how much of the time that is."
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
