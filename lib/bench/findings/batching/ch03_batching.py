"""The predictions of chapter 3 against what was measured, and all its sentences together.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None
where it has none.

Introduced in chapter 3.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lib.bench.findings import vllm_batches
from lib.bench.findings.batching import batch_causes, batch_steps
from lib.bench.findings.batching.batch_counts import (
    published_gain,
    published_memory,
    realistic,
    realistic_rows,
    turning,
)
from lib.bench.findings.batching.batch_steps import SWEEP
from lib.bench.findings.batching.batch_sweep import sweep
from lib.bench.findings.batching.batching_rows import BUDGET, CHAT, EQUAL, VARIABLE, over, row
from lib.bench.findings.batching.long_prompt import budget, chunk_cause, delay
from lib.bench.findings.batching.padded_pass import padding, padding_time
from lib.bench.findings.batching.schedulers import (
    chat,
    equal,
    fuller,
    promised_by_steps,
    published_equal,
    same_answers,
    variable,
)
from lib.bench.findings.predictions import Prediction
from lib.bench.findings.values import cell, column, times, value
from lib.bench.measure import counts
from lib.bench.records.files import Run, read_records, reference
from lib.bench.records.published_vllm import published_vllm
from lib.bench.records.series import Series
from lib.models.checkpoint import GPT2_CONFIG

__all__ = [
    "Mixed",
    "budget",
    "chapter_8",
    "chat",
    "equal",
    "padding",
    "predictions",
    "promised_by_steps",
    "published_equal",
    "published_gain",
    "published_memory",
    "realistic",
    "realistic_rows",
    "render",
    "same_answers",
    "sweep",
    "turning",
    "variable",
]
# Claims whose reason is one for being right, and not for being wrong.
CONFIRMED = ("batch at which", "gain of continuous batching, equal lengths")


def predictions(run: Any, packed: Any = None) -> list[Prediction]:
    """The chapter's predictions; `packed`: chapter 8's recorded run. `run[name]` may come from different runs."""
    found = _sweep_predictions(run, packed) + _scheduler_predictions(run)
    return [_without_excuse(prediction) for prediction in found]


def _sweep_predictions(run: Any, packed: Any) -> list[Prediction]:
    series = run[SWEEP]
    ours, bound = batch_steps.step_ms(series), batch_steps.step_ms(series, "bound_tok_s")
    products = column(series, "products")
    cause, first = batch_causes.gain_cause(run, packed), batch_causes.first_cause(series)
    if first.kind == "missing" and batch_causes.laid_out(packed).kind == "free":
        first = replace(batch_causes.laid_out(packed), kind="products")
    got = batch_steps.gain(series, "tok_s")
    sizes = batch_steps.batches(series)
    alone = batch_steps.ratio(products)
    high = batch_steps.over_bound(series, 0)
    slow_start = ""
    if high and high > 1.25:
        slow_start = f"for another reason than the bound's: a step of {sizes[0]} takes {times(high)} its bound"
    by_products = sizes[-1] / sizes[0] / alone if alone and sizes else None
    return [
        Prediction("time of a padded pass over a flat one, from the tokens",
                   over(run["padding"], "tokens", 0, 1), padding_time(run["padding"]), "", "×"),
        Prediction("time of a step, second batch over the first, from the bound", batch_steps.ratio(bound, 1),
                   batch_steps.ratio(ours, 1), first.text if first.kind == "products" else "", "×"),
        Prediction("the same, from the products timed alone", batch_steps.ratio(products, 1), batch_steps.ratio(ours, 1),
                   "", "×"),
        Prediction("batch at which a step takes twice as long as alone, from the bound",
                   batch_steps.doubling(series, bound), batch_steps.doubling(series, ours), slow_start, ""),
        Prediction("gain from the smallest batch to the largest, from the bound", batch_steps.gain(series, "bound_tok_s"),
                   got, cause.text if cause.kind in ("products", "around", "late") else "", "×"),
        Prediction("the same, from the products timed alone", by_products, got, "", "×"),
    ]  # fmt: skip


def _scheduler_predictions(run: Any) -> list[Prediction]:
    made = []
    lengths = run[VARIABLE]
    pairs = (
        ("chat", run[CHAT], 0, 1),
        ("variable lengths", lengths, row(lengths, "static"), row(lengths, "continuous")),
    )
    for name, series, static, continuous in pairs:
        why = fuller(series, static, continuous).strip().removesuffix(".")
        promised = over(series, "steps", static, continuous)
        got = over(series, "tok_s", continuous, static)
        # Less than the steps promise is expected, less than nothing is not.
        sense = "at most" if got is None or got >= 1 else ""
        made.append(
            Prediction(
                f"gain of continuous batching, {name}, from the steps",
                promised,
                got,
                why,
                "×",
                sense,
            )  # fmt: skip
        )
    equal_run, long = run[EQUAL], run[BUDGET]
    chunks, cause = value(cell(long, "prompt_steps", 1)).middle, chunk_cause(run)
    alone = over(long, "products_s", 1, 0)
    why = cause.text if cause.kind == "products" else ""
    work, late = delay(long), over(long, "ttft_long_s", 1, 0)
    why_late = why if work and late and late > work else ""
    return made + [
        Prediction("gain of continuous batching, equal lengths, from the steps", over(equal_run, "steps", 0, 1),
                   over(equal_run, "tok_s", 1, 0), "both take the same steps", "×"),
        Prediction("longest gap, whole prompt over chunks, in proportion to the tokens", over(long, "budget", 0, 1),
                   over(long, "longest_gap_s", 0, 1), why, "×"),
        Prediction("the same, from the products timed alone", over(long, "products_s", 0, 1),
                   over(long, "longest_gap_s", 0, 1), "", "×"),
        Prediction("TTFT of the long prompt, chunks over one step, in proportion to the tokens",
                   work, late, why_late, "×"),
        Prediction("the same, from the products timed alone", chunks * alone if chunks and alone else None,
                   late, "", "×"),
    ]  # fmt: skip


def _without_excuse(prediction: Prediction) -> Prediction:
    """A cause of a deviation stands beside a deviation only; that of a confirmed limit or equality stays."""
    failed = prediction.verdict == "the prediction failed"
    off = failed or prediction.verdict.startswith("a little")
    confirms = bool(prediction.sense) or prediction.claim.startswith(CONFIRMED)
    fits = prediction.verdict == "as predicted" if confirms else off
    why = prediction.why if fits else ""
    return replace(prediction, why=why or ("no cause was measured" if failed else ""))


class Mixed:
    """One run for the table at the end, put together from the runs that each experiment showed."""

    def __init__(self, first: Any, others: Mapping[str, Any]):
        self._first, self._others, self.roofline = first, others, first.roofline

    def __getitem__(self, name: str) -> Series | None:
        return self._others.get(name, self._first)[name]


def chapter_8(slug: str | None = None) -> Run | None:
    """Chapter 8's recorded run, of this hardware where there is one: its products with weights laid out once."""
    runs = read_records("08_launch_overhead")
    own = [run for run in runs if run.slug == slug]
    return (own or runs or [None])[0]


def render(run: Any) -> dict[str, str]:
    """Every sentence of the chapter, by the name under which the chapter glues it."""
    published = reference()
    fingerprint = getattr(run, "data", {}).get("fingerprint", {})
    packed = chapter_8(fingerprint.get("hardware", {}).get("slug"))
    return (
        turning({("float32", 11): 13, ("bfloat16", 11): None})
        | realistic()
        | padding(run)
        | sweep(run, packed)
        | published_gain(published["batch_sweep"])
        | published_memory(published["batch_sweep"], counts.kv_bytes_per_token(GPT2_CONFIG, "float32"))
        | vllm_batches.sentences(published, published_vllm())
        | promised_by_steps(96, 76)
        | chat(run)
        | variable(run)
        | same_answers(None, 48)
        | equal(run)
        | published_equal(published)
        | budget(run)
    )  # fmt: skip
