"""The sentences of chapter 7 that depend on what was measured.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None where it has none.

Introduced in chapter 7.
"""

from typing import Any

from lib.bench.findings.fused_attention import (
    fused_layer,
    fused_parts,
    fused_rows,
    fused_step,
    fused_warm,
)
from lib.bench.findings.fused_attention.fused_chunks import chunks
from lib.bench.findings.fused_attention.fused_layer import broke, layer
from lib.bench.findings.fused_attention.fused_parts import (
    caches,
    compiling,
    gather_parts,
    hot_bytes,
    once,
    shuffled,
    unused_slots,
)
from lib.bench.findings.fused_attention.fused_step import realistic, realistic_rows, service, step
from lib.bench.findings.fused_attention.fused_warm import second_model_rows, warm_caches
from lib.bench.findings.gates import stand_in_closed
from lib.bench.findings.predictions import Prediction, with_causes
from lib.bench.findings.values import percent, times
from lib.bench.findings.vocabulary import ratio_range
from lib.bench.measure.roofline import Roofline

__all__ = ["bound_by", "broke", "caches", "chunks", "compiling", "gather_parts", "hot_bytes", "layer", "once", "predictions", "realistic",
           "realistic_rows", "render", "second_model_rows", "service", "shuffled", "step", "unused_slots",
           "warm_caches"]  # fmt: skip


def bound_by(intensity: float, roofline: Roofline) -> dict[str, str]:
    """Which ceiling bounds attention, by its intensity and the ridge of large matrix products."""
    ridge = roofline.ridge("float32")
    side = (
        "By these two numbers bandwidth bounds attention"
        if intensity < ridge
        else "By these two numbers arithmetic bounds attention here, so that three transfers take less than three times as long"
    )
    return {"bound_by": f"{side}."}


def predictions(
    run: Any, parts: Any = None, steps: Any = None, warm: Any = None
) -> list[Prediction]:
    """The chapter's predictions, for the table at its end; parts, steps, warm: the runs of those experiments, where others."""
    parts, steps, warm = (run if other is None else other for other in (parts, steps, warm))
    slow = _left(fused_warm.warm_share(warm, "contiguous"), "the contiguous read")
    found = [
        Prediction(
            "attention of a layer: gather over contiguous, by bytes",
            fused_layer.foretold(run, "gather"), fused_rows.measured_range(run, "gather"), slow, "×",
        ),
        Prediction(
            "attention of a layer: fused over contiguous, by bytes",
            1.0, fused_rows.measured_range(run, "fused"), slow, "×",
        ),
        Prediction(
            "the same for the gather, by warm caches plus bytes",
            fused_warm.added_ratio(warm, "gather"), fused_rows.measured_range(warm, "gather"), "", "×",
        ),
        Prediction(
            "the same for fused, by warm caches plus bytes",
            fused_warm.added_ratio(warm, "fused"), fused_rows.measured_range(warm, "fused"), _overlap(warm), "×",
        ),
        Prediction(
            "copy of the gather over attention in one piece, by bytes",
            2.0, fused_parts.copy_over_piece(parts), slow, "×",
            undecided=bool(stand_in_closed(parts, fused_parts.EXPERIMENT)),
        ),
        Prediction(
            "fused kernel: float32 over half precision, by bytes",
            2.0, ratio_range(fused_rows.largest(run, "fused"), fused_rows.largest(run, "fused_half")),
            _left(fused_warm.warm_share(warm, "fused"), "the fused kernel"), "×",
        ),
        Prediction(
            "whole step: gather over contiguous, by bytes",
            fused_step.predicted_ratio(steps, "gather"), fused_step.measured_range(steps, "gather"), "", "×",
        ),
        Prediction(
            "whole step: fused over contiguous, by bytes",
            1.0, fused_step.measured_range(steps, "fused"), _faster_kernel(run, steps), "×",
        ),
        Prediction(
            "whole step: fused over contiguous, the goal",
            fused_step.GOAL, fused_step.measured_ratio(steps, "fused"), "", "×", "at most",
        ),
    ]  # fmt: skip
    return with_causes(found)


def _left(warm: float | None, name: str) -> str:
    """A cause by warm caches, where they leave a large part of the time."""
    if warm is None or warm <= 0.45:
        return ""
    return f"warm caches leave {percent(warm)} of {name}'s time, so bytes are only a part of it"


def _overlap(run: Any) -> str:
    measured, added = fused_rows.largest(run, "fused"), fused_warm.added(run, "fused")
    ratio = fused_rows.over(measured, added)
    if ratio is None or ratio >= 0.9:
        return ""
    return f"the kernel takes {times(ratio)} the sum, so it computes while keys arrive"


def _faster_kernel(run: Any, steps: Any) -> str:
    ratio, whole = fused_rows.measured(run, "fused"), fused_step.measured_ratio(steps, "fused")
    if ratio is None or whole is None or (ratio < 1) != (whole < 1):
        return ""
    return f"attention alone: {times(ratio)}"


def render(run: Any) -> dict[str, str]:
    """Every sentence of the chapter, by the name under which the chapter glues it."""
    parts = (
        layer,
        warm_caches,
        broke,
        gather_parts,
        chunks,
        caches,
        shuffled,
        compiling,
        step,
        service,
    )
    said = {name: text for words in parts for name, text in words(run).items()}
    return said | realistic()
