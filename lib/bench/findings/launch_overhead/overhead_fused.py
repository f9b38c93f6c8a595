"""The step with fused layers: its calls around the products, its parts, and its products against the bandwidth.

Each function takes a run and returns sentences of chapter 8. Introduced in chapter 8.
"""

from typing import Any

from lib.bench.findings.values import Measured, cell, number, percent, positive, quantity, value
from lib.bench.findings.vocabulary import capital, compare, missing, versus_prediction

PARTS = "step_parts"
PACKED, FUSED = "packed", "fused"
TILES, ONEDNN = (
    "few rows",
    "oneDNN",
)  # the kernel of a step's products; older records do not have it
AROUND = ("attention", "rest of the model", "around the model")


def row_of(run: Any, engine: str) -> int | None:
    """The series' first row of an engine: the one at batch 1."""
    series = run[PARTS]
    if series is None or not {"engine", "batch"} <= series.columns.keys():
        return None
    found = [i for i, name in enumerate(series["engine"]) if name == engine]
    return found[0] if found else None


def around(run: Any, engine: str) -> float | None:
    """Seconds of a step at batch 1 that are not products."""
    row = row_of(run, engine)
    if row is None:
        return None
    parts = [value(cell(run[PARTS], part, row)) for part in AROUND]
    if any(not part.known or part.middle < 0 for part in parts):
        return None
    return sum(part.middle for part in parts) or None


def fused_prediction(run: Any) -> tuple[float | None, Measured]:
    """(predicted, measured) seconds around the products of the fused step: as many calls, as long as in the packed one."""
    before = around(run, PACKED)
    calls = [_count(run, engine) for engine in (PACKED, FUSED)]
    predicted = before * calls[1] / calls[0] if before and all(calls) else None
    return predicted, around(run, FUSED)


def products_prediction(run: Any) -> tuple[float | None, Measured]:
    """(predicted, measured) seconds of the fused step's products at batch 1: the time of their bytes."""
    row, ceiling = row_of(run, FUSED), run.roofline and run.roofline.bandwidth
    if row is None:
        return None, None
    size = positive(cell(run[PARTS], "weight_bytes", row))
    return size / ceiling if size and ceiling else None, cell(run[PARTS], "products", row)


def bandwidth_share(run: Any, engine: str) -> float | None:
    """The rate at which an engine's products read their weights at batch 1, over the measured bandwidth."""
    row, ceiling = row_of(run, engine), run.roofline and run.roofline.bandwidth
    if row is None or not ceiling:
        return None
    seconds, size = (positive(cell(run[PARTS], name, row)) for name in ("products", "weight_bytes"))
    return size / seconds / ceiling if seconds and size else None


def fused(run: Any) -> dict[str, str]:
    """Calls and their prediction; what became of the time around the products and of the products themselves."""
    return {
        "fused_calls_finding": _calls(run),
        "fused_around_finding": _around(run),
        "fused_products_finding": _products(run),
        "fused_step_finding": _step(run),
    }


def _calls(run: Any) -> str:
    calls, before = [_count(run, engine) for engine in (PACKED, FUSED)], around(run, PACKED)
    predicted, _ = fused_prediction(run)
    if not all(calls) or predicted is None:
        return missing("the number of calls around the products").sentence
    return (
        f"The packed step makes {number(calls[0])} calls into compiled code around its products and spends "
        f"{quantity(before, 's')} there; the fused step makes {number(calls[1])}. If each takes as long as before, "
        f"{quantity(predicted, 's')} are left."
    )


def _around(run: Any) -> str:
    predicted, measured = fused_prediction(run)
    found = versus_prediction(predicted, measured)
    if predicted is None or "missing" in found.kind:
        return missing("the time around the products").sentence
    said = f"The time around the products went from {quantity(around(run, PACKED), 's')} to "
    said += f"{quantity(measured, 's')}: {found.verdict}."
    parts = {part: positive(cell(run[PARTS], part, row_of(run, FUSED))) or 0.0 for part in AROUND}
    largest = max(parts, key=parts.get)
    return f"{said} The largest part of what is left is {_NAMES[largest]} ({percent(parts[largest] / measured)})."


_NAMES = {
    "attention": "attention",
    "rest of the model": "the rest of the model",
    "around the model": "what the engine does around the model",
}


def _products(run: Any) -> str:
    rows = [row_of(run, engine) for engine in (FUSED, PACKED)]
    if None in rows:
        return missing("the products of few rows").sentence
    if "kernel" in run[PARTS] and run[PARTS]["kernel"][rows[0]] == ONEDNN:
        return (
            "Here oneDNN stores packed weights in another order than the kernel for few rows reads, so oneDNN computes "
            "the products of both steps."
        )
    found = compare(
        *(cell(run[PARTS], "products", row) for row in rows),
        "the kernel for few rows",
        "oneDNN's",
    )
    if found.kind == "missing":
        return found.sentence
    said = f"For the products at batch 1, {found}."
    shares = [bandwidth_share(run, engine) for engine in (FUSED, PACKED)]
    if all(shares):
        said += (
            f" The kernel for few rows reads the weights at {percent(shares[0])} of the measured "
            f"bandwidth, oneDNN's at {percent(shares[1])}. The time of the bytes was predicted: "
            f"{versus_prediction(*products_prediction(run)).verdict}."
        )
        said += _above_all(max(shares))
    return said


def _above_all(share: float) -> str:
    """Why a share of the measured bandwidth, as it is printed, can be above 100 %."""
    if share > 1.05:
        return " More than 100 % says that the bandwidth was measured too low."
    if round(100 * share) > 100:
        return " The bandwidth is a measurement too, and a share just above 100 % says that the products reach it."
    return ""


def _step(run: Any) -> str:
    series = run[PARTS]
    if series is None or not {"engine", "batch", "step"} <= series.columns.keys():
        return missing("the fused step").sentence
    said = []
    for batch in dict.fromkeys(series["batch"]):
        rows = {
            name: i
            for i, (name, b) in enumerate(zip(series["engine"], series["batch"]))
            if b == batch
        }
        if {PACKED, FUSED} <= rows.keys():
            found = compare(
                cell(series, "step", rows[FUSED]),
                cell(series, "step", rows[PACKED]),
                "the fused step",
                "the packed one",
            )
            if found.kind != "missing" and batch is not None:
                said.append(f"at batch {number(batch)}, {found}")
    return f"{capital('; '.join(said))}." if said else missing("the fused step").sentence


def _count(run: Any, engine: str) -> float | None:
    row = row_of(run, engine)
    return None if row is None else positive(cell(run[PARTS], "calls", row))
