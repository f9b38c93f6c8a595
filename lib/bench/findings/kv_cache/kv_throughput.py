"""The sentences of chapter 2 about throughput, here and in the published run.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None where it has none.

Introduced in chapter 2.
"""

from collections.abc import Sequence
from typing import Any

from lib.bench.findings.kv_cache.kv_steps import (
    calibrated,
    model_kind,
    token_count,
)
from lib.bench.findings.values import (
    Measured,
    cell,
    column,
    ends,
    number,
    percent,
    quantity,
    value,
)
from lib.bench.findings.vocabulary import (
    compare,
    missing,
    versus_prediction,
)
from lib.bench.measure import counts
from lib.bench.measure.step_model import LONGEST, StepModel
from lib.bench.records.series import Series
from lib.models.checkpoint import GPT2_CONFIG

THROUGHPUT, A_SECOND = "throughput_by_generated", "tokens/s"


# Throughput against the length of the answer.


def gains(run: Any) -> list[Measured]:
    """Throughput with the cache over that without, one value per generated length, with the spread of the repeats."""
    series = run[THROUGHPUT]
    found = []
    for row in range(len(column(series, "generated"))):
        slow, fast = cell(series, "no_cache", row), cell(series, "kv_cache", row)
        a, b = value(slow), value(fast)
        known = a.known and b.known and a.middle > 0 and b.middle > 0
        if not known:
            found.append(None)
        elif (
            isinstance(slow, list)
            and isinstance(fast, list)
            and len(slow) == len(fast) > 1
            and a.low > 0
        ):
            # In turns: one pair per turn. The middle is that of the rates on the page.
            pairs = [y / x for x, y in zip(slow, fast)]
            found.append([min(pairs), b.middle / a.middle, max(pairs)])
        else:
            found.append(b.middle / a.middle)
    return found  # fmt: skip


def predicted_gains(run: Any, steps_run: Any, kind: str) -> list[float | None]:
    """The gain by a model whose fixed cost and rate come from the figure of one step, one value per generated length."""
    series, models = run[THROUGHPUT], calibrated(steps_run)
    generated = column(series, "generated")
    if not models or series is None:
        return [None] * len(generated)
    return [models[kind].gain(series.params["prompt"], int(n)) for n in generated]


def throughput(run: Any, steps_run: Any = None) -> dict[str, str]:
    """Under the figure of throughput by generated tokens; `steps_run`: the run of the steps, where another."""
    steps_run = run if steps_run is None else steps_run
    series = run[THROUGHPUT]
    generated, measured = column(series, "generated"), gains(run)
    foreseen = predicted_gains(run, steps_run, model_kind(steps_run))
    rates = [ends(series, name)[1] for name in ("kv_cache", "no_cache")]
    whole = compare(
        *rates, "the engine with the cache", "the engine without", what="throughput", unit=A_SECOND
    )
    said = missing("the throughput").sentence
    if whole.kind != "missing":
        said = f"Over {number(generated[-1])} tokens, {whole}."
    peer = compare(rates[0], ends(series, "transformers")[1], "this engine", "transformers with its own cache",
                   what="throughput", unit=A_SECOND)  # fmt: skip
    static = ends(series, "transformers_static")[1]
    beside = " The static cache of transformers did not run here."
    if value(static).known:
        found = compare(rates[0], static, "this engine", "transformers with its static cache",
                        what="throughput", unit=A_SECOND)  # fmt: skip
        beside = f" {found.sentence}"
    return {
        "rate_finding": said,
        "gain_finding": _gain_verdicts(generated, measured, foreseen),
        "peer_finding": peer.sentence + beside,
        "busy_finding": _busy(run["peak_and_busy"]),
    }  # fmt: skip


def _gain_verdicts(
    generated: Sequence[float], measured: Sequence[Measured], foreseen: Sequence[float | None]
) -> str:
    rows = [i for i in (0, len(generated) // 2, -1) if -len(generated) <= i < len(generated)]
    rows = list(dict.fromkeys(i % len(generated) for i in rows))
    said = []
    if not rows:
        return missing("the gain or its prediction").sentence
    for i in rows:
        found = versus_prediction(foreseen[i], measured[i], "×")
        if found.kind == "missing":
            return missing("the gain or its prediction").sentence
        said.append(f"over {number(generated[i])} tokens, {found}")
    return f"The gain of the cache beside the model's: {'; '.join(said)}."


def _busy(series: Series | None) -> str:
    found = [value(cell(series, "gpu_busy", row)).middle for row in (0, 1)]
    if None in found:
        return "On a GPU the record also says for which share of the time any kernel was running."
    return (
        f"Some kernel was running for {percent(found[0] / 100)} of the time without a cache, and for "
        f"{percent(found[1] / 100)} with one."
    )


# The published run.


def published_models(published: Any) -> dict[str, StepModel]:
    """Both models from one published table, latency by prompt: nothing in them comes from the other, by generated tokens."""
    table = published["latency_by_prompt_50_new_tokens"]
    fixed = table["kv_cache_s"][0] / 50
    longest, seconds = table["prompt"][-1], table["no_cache_s"][-1]
    work = counts.generate_flops(GPT2_CONFIG, longest, 50, kv_cache=False)
    extra = work - 50 * counts.prefill_flops(GPT2_CONFIG, 1)
    rates = {"sum": extra / (seconds - 50 * fixed), "larger": work / seconds}
    # The tables do not give its bandwidth; at these lengths the cache is small.
    return {
        kind: StepModel(GPT2_CONFIG, fixed, rate, float("inf"), kind == "larger")
        for kind, rate in rates.items()
    }


def published_gains(published: Any) -> list[float]:
    """Published throughput with the cache over that without."""
    table = published["throughput_by_generated_tokens"]
    return [b / a for a, b in zip(table["no_cache_tok_s"], table["kv_cache_tok_s"])]


def published_run(published: Any) -> dict[str, str]:
    """The published A100 figures: why the cache hardly helps a short answer there."""
    by_prompt = published["latency_by_prompt_50_new_tokens"]
    generated = published["throughput_by_generated_tokens"]["tokens"]
    models, measured = published_models(published), published_gains(published)
    model, other = models["larger"], models["sum"]
    verdicts = "; ".join(
        f"over {number(n)} tokens, {versus_prediction(model.gain(10, n), gain, '×')}"
        for n, gain in zip(generated, measured)
    )
    miss = [
        max(abs(gain / m.gain(10, n) - 1) for n, gain in zip(generated, measured))
        for m in (model, other)
    ]
    short = compare(
        by_prompt["kv_cache_s"][0],
        by_prompt["no_cache_s"][0],
        "the run with a cache",
        "the one without",
    )
    peak = 1e12 * published["setup"]["peak_tflops_fp32"]
    better = (
        "The sum of the two would be"
        if miss[1] > 1.25 * miss[0]
        else "The sum of the two is no better:"
    )
    return {
        "published_gain_finding": f"The published gain beside the model's: {verdicts}.",
        "published_model_finding": (
            f"The larger of the two costs misses these gains by at most {percent(miss[0])}. {better} off by up to "
            f"{percent(miss[1])}."
        ),
        "published_floor_finding": (
            f"The fixed cost there is {quantity(model.fixed, 's')} per step. After a prompt of "
            f"{number(by_prompt['prompt'][0])} tokens, {short} for fifty new tokens."
        ),
        "published_emerges_finding": (
            f"Its long passes ran at {percent(model.rate / peak)} of the card's arithmetic peak. By the model, a pass "
            f"takes 10 % longer than the fixed cost from {token_count(model.emerges_at())} on. "
            f"Up to there the arithmetic adds at most these 10 %: the GPU computes while it "
            f"would otherwise wait for the next kernel to be started, so a cache saves work but "
            f"hardly any time."
        ),
    }  # fmt: skip


def pays(run: Any, published: Any) -> dict[str, str]:
    """From where a pass takes longer than the fixed cost, here and in the published run."""
    models = calibrated(run)
    if not models:
        return {
            "pays_finding": missing("the length from which a pass exceeds its fixed cost").sentence
        }
    here = models[model_kind(run)].emerges_at()
    there = published_models(published)["larger"].emerges_at()
    said = (
        f"By the model of this machine, a pass takes 10 % longer than its fixed cost from {token_count(here)} on; by the "
        f"model of the published A100, from {token_count(there)}."
    )
    nearer, further = here or LONGEST + 1, there or LONGEST + 1
    if nearer < further / 1.25:
        said += " A cache pays earlier here than there."
    elif nearer > 1.25 * further:
        said += " A cache pays later here than there."
    return {"pays_finding": said}
