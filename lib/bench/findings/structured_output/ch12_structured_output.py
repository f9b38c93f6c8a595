"""The sentences of chapter 12 that depend on what was measured.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None
where it has none.

Introduced in chapter 12.
"""

from typing import Any

from lib.bench.findings.predictions import Prediction
from lib.bench.findings.realistic import realistic_step
from lib.bench.findings.structured_output.mask_answers import all_valid, asking, forced, whitespace
from lib.bench.findings.structured_output.mask_bias import bias, drawn
from lib.bench.findings.structured_output.mask_cost import (
    GOAL_BATCH,
    STEP_GOAL,
    cost,
    over_free,
    steps,
    walk,
)
from lib.bench.findings.structured_output.schema_suite import runs, suite
from lib.bench.findings.values import cell

__all__ = [
    "GOAL_BATCH", "asking", "bias", "cost", "forced", "predictions", "render", "steps", "walk",
    "whitespace",
]  # fmt: skip


def predictions(run: Any) -> list[Prediction]:
    """The chapter's predictions, for the table at its end."""
    series = run["mask_time_by_vocabulary"]
    return [
        Prediction("texts that end with stop and are valid", "all", all_valid(run)),
        Prediction(
            "first mask of a state, by counting look-ups",
            cell(series, "predicted", -1), cell(series, "walk", -1),
        ),
        Prediction(
            f"step with masks of few states over a step without, batch {GOAL_BATCH}",
            1 + STEP_GOAL, over_free(run, "few states"), "", "", "at most",
        ),
        Prediction("draws of the most likely answer with masks, by its exact share", "agrees", drawn(run)),
    ]  # fmt: skip


def render(run: Any) -> dict[str, str]:
    """Every sentence of the chapter, by the name under which the chapter glues it."""
    measured: dict[str, str] = {}
    for part in (asking, walk, steps, bias, whitespace, forced):
        measured |= part(run)
    return measured | suite() | runs() | realistic_step.masks()
