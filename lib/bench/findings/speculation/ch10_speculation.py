"""The sentences of chapter 10 that depend on what was measured.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None
where the run has none of that name.

Introduced in chapter 10.
"""

from dataclasses import replace
from typing import Any

from lib.bench.findings.predictions import Prediction, with_causes
from lib.bench.findings.realistic import realistic_step
from lib.bench.findings.speculation.speculation_acceptance import (
    acceptance,
    by_position,
    loops,
    rows,
)
from lib.bench.findings.speculation.speculation_drafters import (
    draft_model,
    early_exit,
    lookup,
    methods,
)
from lib.bench.findings.speculation.speculation_gain import (
    adaptive,
    batch_of_one,
    crossing,
    crossings,
    measured_gains,
    place_in_words,
    predicted_gains,
    random_text,
)
from lib.bench.findings.values import cell_of, number, value
from lib.bench.findings.vocabulary import MISSING, Finding, missing

__all__ = [
    "acceptance", "adaptive", "batch_of_one", "by_position", "crossing", "draft_model",
    "early_exit", "lookup", "loops", "methods", "predictions", "random_text", "render", "rows",
]  # fmt: skip


def predictions(run: Any) -> list[Prediction]:
    """The chapter's predictions, for the table at its end."""
    gains, foretold = measured_gains(run), predicted_gains(run)
    predicted, measured, batches = crossings(run)
    speed_ups = [(f"batch {n}", want, got) for n, want, got in zip(batches, foretold, gains)] or [
        (name, None, None) for name in ("batch 1", "the largest batch")
    ]
    tokens, counted = (
        cell_of(run["acceptance"], "editing", name) for name in ("by_position", "tokens_per_step")
    )
    by_rate = Prediction(
        "tokens per step of the editing tasks, from the acceptance by position",
        tokens,
        counted,
        "",
        "",
    )
    made = value(cell_of(run["acceptance"], "editing", "drafts_per_step")).middle
    asked = (run["acceptance"].params or {}).get("k") if run["acceptance"] is not None else None
    if by_rate.verdict not in ("as predicted", MISSING) and made and asked and made < asked:
        by_rate = replace(by_rate, why=f"a mean step has {number(made)} drafts, not {asked}")
    crossed, met = "a crossover", missing("the batch from which on drafts lose")
    if predicted is not None and measured is not None:
        crossed = place_in_words(predicted, batches)
        kinds = (crossed, "within", "far")  # the very point, its neighbour, any other
        met = Finding(place_in_words(measured, batches), kinds[min(2, abs(predicted - measured))])
    found = [
        by_rate,
        *(
            Prediction(f"speed-up at {name}", want, got, "", "×")
            for name, want, got in speed_ups
        ),
        Prediction("where drafts lose, within one point of the sweep", crossed, met),
    ]  # fmt: skip
    return with_causes(found)


def render(run: Any) -> dict[str, str]:
    """Every sentence of the chapter, by the name under which the chapter glues it."""
    return (
        rows(run)
        | acceptance(run)
        | by_position(run)
        | batch_of_one(run)
        | crossing(run)
        | adaptive(run)
        | random_text(run)
        | early_exit(run)
        | methods(run)
        | draft_model(run)
        | lookup(run)
        | realistic_step.speculation()
    )
