"""The sentences of chapter 12 that depend on what was measured.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None
where it has none.

Introduced in chapter 12.
"""

from typing import Any

from lib.bench.findings.predictions import Prediction, with_causes
from lib.bench.findings.realistic import realistic_step
from lib.bench.findings.structured_output.mask_answers import all_valid, asking, forced, whitespace
from lib.bench.findings.structured_output.mask_bias import bias, drawn, tries
from lib.bench.findings.structured_output.mask_cost import (
    AT_MOST,
    GOAL_BATCH,
    cost,
    judged,
    steps,
    walk,
)
from lib.bench.findings.structured_output.schema_suite import runs, suite
from lib.bench.findings.values import cell

__all__ = [
    "GOAL_BATCH", "asking", "bias", "cost", "forced", "predictions", "render", "steps", "walk",
    "tries", "whitespace",
]  # fmt: skip


def predictions(run: Any, mask_run: Any = None, step_run: Any = None) -> list[Prediction]:
    """The chapter's predictions, for the table at its end.

    run: that of what is counted; the others where an experiment on times shows another run.
    """
    mask_run, step_run = (run if other is None else other for other in (mask_run, step_run))
    series = mask_run["mask_time_by_vocabulary"]
    found = [
        Prediction("texts that end with the reason stop and are valid", "all", all_valid(run)),
        Prediction(
            "first mask of a state, by counting look-ups",
            cell(series, "predicted", -1), cell(series, "walk", -1),
        ),
        Prediction(
            f"step with masks of few states over a step without, batch {GOAL_BATCH}",
            AT_MOST, judged(step_run, "few states"),
        ),
        Prediction(
            "draws of the most likely answer with masks, by its exact share", "agrees", drawn(run)
        ),
    ]  # fmt: skip
    return with_causes(found)


def render(run: Any) -> dict[str, str]:
    """Every sentence of the chapter, by the name under which the chapter glues it."""
    measured: dict[str, str] = {}
    for part in (asking, walk, steps, bias, tries, whitespace, forced):
        measured |= part(run)
    return measured | suite() | runs() | realistic_step.masks()
