"""The sentences of chapter 8 that depend on what was measured.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None where it has none.

Introduced in chapter 8.
"""

from dataclasses import replace
from typing import Any

from lib.bench.findings import vllm_batches
from lib.bench.findings.curves import growth
from lib.bench.findings.launch_overhead import overhead_fused
from lib.bench.findings.launch_overhead.overhead_busy import busy, busy_ratio
from lib.bench.findings.launch_overhead.overhead_engines import modules, steps
from lib.bench.findings.launch_overhead.overhead_fused import fused, fused_prediction
from lib.bench.findings.launch_overhead.overhead_kernels import (
    kernels,
    packed_prediction,
    slow_products,
)
from lib.bench.findings.launch_overhead.overhead_profile import (
    by_kind,
    more_calls,
    python_seconds,
    share_trend,
)
from lib.bench.findings.launch_overhead.overhead_prompt import (
    SAME_ARITHMETIC,
    prefill,
    prompt_ratio,
)
from lib.bench.findings.launch_overhead.overhead_rows import LAUNCHES, PRODUCTS, STEPS, last_batch
from lib.bench.findings.launch_overhead.overhead_step import bound_and_count, first_tables, starting
from lib.bench.findings.launch_overhead.overhead_whole_way import whole_way
from lib.bench.findings.launch_overhead.peer_limit import peer_limit
from lib.bench.findings.predictions import Prediction
from lib.bench.findings.run_notes import of_record
from lib.bench.findings.values import Measured, cell, number, positive, quantity, times, value
from lib.bench.findings.vocabulary import capital, missing, share, versus_prediction
from lib.bench.measure import counts
from lib.bench.measure.data_sheets import H100, LLAMA_7B
from lib.bench.paths import measurements_dir
from lib.bench.records.files import reference
from lib.bench.records.published_vllm import published_vllm

SMOLLM2_LAYERS = 30
LAUNCH = 5e-6  # seconds to launch one kernel on a GPU: the assumption of exercise 1
EXERCISE_BANDWIDTH = 2e12

__all__ = ["beside_vllm", "by_kind", "bound_and_count", "busy", "first_tables", "fused", "kernels", "model", "modules", "predictions", "prefill", "realistic",
           "render", "steps", "whole_way"]  # fmt: skip


def first_model(run: Any) -> tuple[float | None, Measured]:
    """(predicted, measured) seconds of the plain step at batch 1: the bound, and starting every operator."""
    series, every = run[LAUNCHES], starting(run)
    bound = positive(cell(series, "bound", 0))
    return (bound + every if bound and every else None), cell(series, "step", 0)


def model(run: Any) -> dict[str, str]:
    """The first model, why it failed, and whether its correction foretells the packed step."""
    predicted, measured = first_model(run)
    found = versus_prediction(predicted, measured)
    if "missing" in found.kind or predicted is None:
        broke = missing("the step that the first model predicts").sentence
    else:
        broke = (
            f"The first model, the bound and all starts, predicts {quantity(predicted, 's')} for "
            f"a step at batch 1. It "
            f"takes {quantity(value(measured).middle, 's')}: {found.verdict}."
        )
        cause = slow_products(run)
        if found.kind == "failed" and found.direction > 0 and cause:
            broke += (
                f" {capital(cause)}, and what they take beyond it is {_of_missing(run, predicted, measured)}. "
                "A bound that is not reached does not predict the time of reading."
            )
    corrected = []
    for row, where in ((0, "batch 1"), (-1, last_batch(run[STEPS]))):
        want, got = packed_prediction(run, row)
        if want is None or not value(got).known:
            continue
        which = "the second prediction, for" if not corrected else "for"
        found = versus_prediction(want, got)
        corrected.append(capital(f"{which} the packed step at {where}: {found}."))
    return {
        "broke_finding": of_record(run, broke),
        "corrected_finding": of_record(run, " ".join(corrected))
        if corrected
        else missing("the packed step").sentence,
    }


def _of_missing(run: Any, predicted: float, measured: Measured) -> str:
    """The products' time beyond their bound, as a share of what the first model missed."""
    series = run[PRODUCTS]
    alone, bound = (cell(series, name, 0) for name in ("F.linear, float32", "bound float32"))
    found = share(positive(alone) - positive(bound), positive(measured) - predicted)
    return "all of the missing time" if found.kind == "failed" else f"{found} of the missing time"


def host_seconds(run: Any) -> tuple[float, float] | None:
    """(launching, Python) seconds for a step of the 7B model: SmolLM2's per layer, with `LAUNCH` for each operator."""
    computing, python = positive(cell(run[LAUNCHES], "computing", 0)), python_seconds(run)
    if not computing or not python:
        return None
    scale = LLAMA_7B.num_layers / SMOLLM2_LAYERS
    return scale * computing * LAUNCH, scale * python


def realistic(run: Any) -> dict[str, str]:
    """A 7B model in bfloat16, on an H100 by its data sheet and in exercise 1: is the step bound by bytes or by the host?"""
    host = host_seconds(run)
    if host is None:
        gone = missing("the host's time for a step").sentence
        return {"realistic_finding": gone, "exercise_finding": gone, "small_model_finding": gone,
                "exercise_lesson_finding": _LESSON}  # fmt: skip
    weights = counts.step_bytes(LLAMA_7B, "bfloat16", [1])
    launching, python = host
    both = launching + python
    parts = f"{quantity(launching, 's')} of launching and {quantity(python, 's')} of Python, {quantity(both, 's')} in all"
    large = H100.time(
        counts.step_bytes(LLAMA_7B, "bfloat16", [1000] * 64),
        counts.step_flops(LLAMA_7B, [1000] * 64),
        "bfloat16",
    )
    bytes_ = weights / H100.bandwidth
    said = (
        f"On an H100 the bytes of one sequence's step take {quantity(bytes_, 's')}, and the host {parts}. "
        f"{_verdict(both, bytes_)} At batch 64 with 1,000 tokens each, the bytes take {quantity(large, 's')}, "
    )
    said += (
        "more than the host does for one sequence; for 64 it has more to do as well."
        if large > 1.1 * both
        else "no more than the host does for one sequence."
    )
    there = weights / EXERCISE_BANDWIDTH
    found = reference(measurements_dir() / "reference" / "gpt_fast.json")
    eager, compiled = found["eager_tok_s"], found["compiled_tok_s"]
    exercise = (
        f"The bytes take {quantity(there, 's')} and the host {parts}. {_verdict(both, there)}"
    )
    exercise += (
        f" A published run of such a model on such a GPU made {number(eager)} tokens/s eagerly, {quantity(1 / eager, 's')} "
        f"per step and {times(1 / eager / there)} the time of the bytes; its authors saw in a trace that the CPU was the "
        f"limit. Compiled, with graphs and a static cache, it made {number(compiled)}, {times(compiled / eager)} as many."
    )
    own = run.roofline and run.roofline.bandwidth
    small = missing("this machine's bandwidth").sentence
    if own:
        slow = weights / own
        small = (
            f"At the bandwidth of the machine that made these numbers, {quantity(own, 'B/s')}, one step of a 7B model "
            f"in bfloat16 would spend {quantity(slow, 's')} on reading, {times(slow / python)} the time that Python would take there."
        )
        if slow > 2 * both and both > 1.1 * bytes_:
            small += (
                " So here the bytes take longer than the host's work, and on the H100 of the "
                "next section they do not: whether overhead matters depends on the machine as "
                "well as on the model."
            )
    return {
        "realistic_finding": said,
        "exercise_finding": exercise,
        "exercise_lesson_finding": _lesson(launching, both, there),
        "small_model_finding": small,
    }


_LESSON = "The estimate needs Python's time as well: launching is a part of the host's work."


def _lesson(launching: float, host: float, device: float) -> str:
    """What the exercise's estimate says beside the published run, in which the host was the limit."""
    if host > 1.1 * device > 1.1 * launching:
        return "Leave Python out of the sum, and you would conclude the opposite of what was measured there."
    if device > 1.1 * host:
        return "The estimate says the opposite of what was measured there: its time for the host is too short for that run."
    return _LESSON


def beside_vllm(_run: Any = None) -> dict[str, str]:
    """vLLM's published steps on an A100: a small model, whose bytes explain little, and a large one."""
    vllm = published_vllm()
    return {
        "vllm_host_finding": vllm_batches.host(vllm),
        "vllm_hidden_finding": vllm_batches.large_model(vllm),
        "vllm_caveat_finding": vllm.caveat,
    }


def _verdict(host: float, device: float) -> str:
    if host > 1.1 * device:
        return (
            f"The host is the slower one: the GPU waits for it, and a recorded step could be up to {times(host / device)} "
            "as fast."
        )
    if device > 1.1 * host:
        return "The bytes take longer, so launching and Python are hidden, and graphs bring no more than the gaps between kernels."
    return "Both take about the same time, so a recorded step would be little faster."


def predictions(
    run: Any, busy_run: Any = None, prompt_run: Any = None, parts_run: Any = None
) -> list[Prediction]:
    """The chapter's predictions, for the table at its end; the other runs where their experiments have gates of their own."""
    busy_run, prompt_run, parts_run = busy_run or run, prompt_run or run, parts_run or run
    series = run[LAUNCHES]
    first = Prediction(
        "a step at batch 1: the bound, and starting its operators", *first_model(run), slow_products(run)
    )  # fmt: skip
    packed = [
        Prediction(
            f"the packed step at {where}: packed products, all else as in the plain step",
            *packed_prediction(run, row),
        )
        for row, where in ((0, "batch 1"), (-1, last_batch(run[STEPS])))
    ]
    tiles = Prediction(
        "products of the fused step at batch 1: the time of their bytes",
        *overhead_fused.products_prediction(parts_run),
    )  # fmt: skip
    calls = Prediction(
        "around the products of the fused step at batch 1: time in proportion to calls",
        *fused_prediction(parts_run),
    )  # fmt: skip
    operators = Prediction(
        "operators in a step, largest batch over batch 1", 1.0,
        growth(cell(series, "operators", 0), cell(series, "operators_rows", 0)), "", "×",
    )  # fmt: skip
    shares = Prediction(
        "share of Python and small operators, with the batch", "falls", share_trend(run),
        more_calls(run) if share_trend(run).kind in ("flat", "rises") else "", "",
    )  # fmt: skip
    ratio = prompt_ratio(prompt_run)
    faster = (value(ratio).middle or 1) < 1
    unmoved = Prediction(
        "a prompt: packed over plain", 1.0, ratio, SAME_ARITHMETIC if faster else "", "×"
    )
    slow = Prediction(
        "a step beside a busy program over alone, threads that spin", 2.0, busy_ratio(busy_run, 0),
        _collapse(busy_run), "×", "at most",
    )  # fmt: skip
    return [_honest(p) for p in (first, *packed, tiles, calls, operators, shares, unmoved, slow)]


def _collapse(run: Any) -> str:
    spinning, bounded = busy_ratio(run, 0), busy_ratio(run, 1)
    if not spinning or not bounded or spinning < 1.5 * bounded:
        return ""
    return f"a bounded spin takes {times(bounded)}, so the rest is spinning"


def _honest(prediction: Prediction) -> Prediction:
    """A cause stands beside a deviation only, and a failure without a measured cause says so."""
    off = prediction.verdict == "the prediction failed" or prediction.verdict.startswith("a little")
    why = capital(str(prediction.why)) if off and prediction.why else ""
    failed = prediction.verdict == "the prediction failed"
    return replace(prediction, why=why or ("No cause was measured" if failed else ""))


def render(run: Any) -> dict[str, str]:
    """Every sentence of the chapter, by the name under which the chapter glues it."""
    parts = (bound_and_count, by_kind, kernels, fused, model, steps, modules, prefill, whole_way, peer_limit, busy, realistic, beside_vllm)  # fmt: skip
    return {name: said for part in parts for name, said in part(run).items()}
