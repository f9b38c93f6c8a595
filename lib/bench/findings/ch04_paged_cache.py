"""The sentences of chapter 4 that depend on what was measured.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None where it has none. The
sentences about the gather stand in `gather_cost`.

Introduced in chapter 4.
"""

from typing import Any

from lib.bench.findings import gather_cost
from lib.bench.findings.predictions import Prediction
from lib.bench.findings.published_memory import MIB, audit, stress, sweeps
from lib.bench.findings.values import (
    Measured,
    cell,
    number,
    percent,
    quantity,
    times,
    value,
)
from lib.bench.findings.vocabulary import compare, missing, versus_prediction
from lib.bench.measure import counts
from lib.bench.measure.data_sheets import H100, LLAMA_7B
from lib.bench.records.files import reference
from lib.bench.records.series import Series

SAME_BYTES = "same_bytes"


def _pair(series: Series | None, column: str) -> tuple[Measured, Measured]:
    """A column of the two engines: contiguous, paged."""
    return cell(series, column, 0), cell(series, column, 1)


def _numbers(series: Series | None, column: str) -> tuple[float | None, float | None]:
    """The same by their middles; None for both where one of them is missing or not above zero."""
    first, second = (value(v).middle for v in _pair(series, column))
    return (first, second) if first and second and min(first, second) > 0 else (None, None)


def same_bytes(run: Any) -> dict[str, str]:
    """The sentences under the figure of sequences at once, on the same bytes."""
    series = run[SAME_BYTES]
    before, after = _numbers(series, "peak_running")
    slow, fast = _numbers(series, "steps")
    at_once, short = missing("the number of sequences at once").sentence, ""
    if before and after:
        short = f"{number(before)} sequences at once became {number(after)}"
        at_once = f"On {series.params['budget_bytes'] / MIB:,.0f} MiB, {short}, {times(after / before)} as many."
        if after >= series.params["requests"]:
            at_once += (
                f" All {number(after)} requests ran at once, so the number of requests was the limit in this run, and "
                "not the number of blocks."
            )
    steps = missing("the number of steps").sentence
    if slow and fast:
        steps = f"The {number(slow)} steps of the workload became {number(fast)}, {times(slow / fast)} fewer."
        if fast >= slow:
            steps = f"The workload took {number(fast)} steps where the contiguous engine took {number(slow)}."
    said = compare(*_pair(series, "tok_s")[::-1], "the paged engine", "the contiguous one", what="throughput", unit="tokens/s")  # fmt: skip
    return {
        "at_once_finding": f"{at_once} {_at_once_prediction(series)}",
        "at_once_short": f"{short or 'the number of sequences at once was not measured here'}.",
        "steps_finding": steps,
        "gain_finding": f"{said.sentence} {_gain_verdict(series)}",
        "gain_cause_finding": gain_cause(run),
        "broke_steps_finding": _broke(series),
        "same_tokens_finding": _same_tokens(series),
    }


def _at_once_prediction(series: Series | None) -> str:
    predicted, measured = cell(series, "predicted_running", 1), cell(series, "peak_running", 1)
    found = versus_prediction(predicted, measured, "sequences")
    if found.kind == "missing":
        return missing("the number that finished lengths predict").sentence
    said = f"From finished lengths the prediction was {number(value(predicted).middle)}: {found.verdict}."
    held = value(cell(series, "peak_blocks", 1)).middle
    if held is not None and found.direction > 0:
        said += (
            " Young sequences need fewer blocks than finished ones; all of them together never held more than "
            f"{number(held)} blocks."
        )
    return said


def gain_limit(run: Any) -> tuple[float | None, Measured]:
    """(ratio of the steps, gain in throughput): the first was to be a limit of the second."""
    series = run[SAME_BYTES]
    slow, fast = _numbers(series, "steps")
    before, after = _pair(series, "tok_s")
    old = value(before).middle
    gains = None
    if old and old > 0 and value(after).known:
        samples, base = value(after), value(before)
        gains = [samples.middle / old]
        if samples.count > 1 and samples.count == base.count and base.low > 0:
            gains = [a / b for a, b in zip(after, before)]
    return (slow / fast if slow and fast else None), gains


def _gain_verdict(series: Series | None) -> str:
    limit, gain = gain_limit({SAME_BYTES: series})
    if limit is None or gain is None or value(gain).middle <= 0:
        return missing("the gain in throughput over the gain in steps").sentence
    got = value(gain).middle
    both = f"throughput {times(got)}, steps {times(limit)}"
    if versus_prediction(limit, gain, "×").kind == "cannot tell":
        return f"Whether the ratio of the steps was the limit, this run cannot tell ({both})."
    if got <= 1.1 * limit:
        return f"The ratio of the steps was predicted to be the limit, and it held ({both})."
    verdict = versus_prediction(limit, got, "×").verdict
    return f"The ratio of the steps was predicted to be the limit, and the gain goes beyond it ({both}): {verdict}."


def _broke(series: Series | None) -> str:
    """What became of the limit on the throughput, for the list of what broke."""
    said = "The ratio of the steps was predicted to limit the gain in throughput, because a step with more sequences does more"
    limit, gain = gain_limit({SAME_BYTES: series})
    got = value(gain).middle
    if limit is None or not got or got <= 0:
        return f"{said}; {missing('whether that holds')}."
    if versus_prediction(limit, gain, "×").kind == "cannot tell":
        return f"{said}. This run cannot tell whether it does."
    if got <= 1.1 * limit:
        return f"{said}. In this run it does. On another machine it need not: more work does not always take more time."
    return f"{said}. The gain was {times(got)}, the limit {times(limit)}: more work did not take more time."


def gain_cause(run: Any) -> str:
    """Where the throughput beyond, or below, the ratio of the steps comes from: the time of a step, and the prompts."""
    series = run[SAME_BYTES]
    slow, fast = (
        s / n if s and n else None
        for s, n in zip(_numbers(series, "seconds"), _numbers(series, "steps"))
    )
    if not slow or not fast:
        return missing("the time of a step").sentence
    said = f"A step took {quantity(fast, 's')} on average with blocks and {quantity(slow, 's')} with slots."
    alone, crowd = _numbers(series, "decode_step")
    few, many = _numbers(series, "decode_sequences")
    if alone and few and many:
        ratio = crowd / alone
        said += (
            f" A step that only decodes advanced {number(many)} sequences on average with blocks and {number(few)} with "
            f"slots, and took {times(ratio)} as long."
        )
        if many > 1.1 * few and ratio < many / few / 1.1:
            said += " So one more sequence adds less to a step than an equal share of its time; chapter 3 has the time of a step by batch."
    prompts, together = _numbers(series, "prompt_seconds")
    if prompts:
        said += (
            f" The steps that computed prompts took {quantity(together, 's')} together with blocks and "
            f"{quantity(prompts, 's')} with slots, for the same prompts."
        )
        if together < prompts / 1.1:
            said += " Many prompts in one step are products of many rows, which come closer to the machine's rate (chapter 1)."
    return said


def _same_tokens(series: Series | None) -> str:
    same = value(cell(series, "same_tokens", 1)).middle
    if same is None:
        return missing("whether both engines gave the same tokens").sentence
    total = series.params["requests"]
    said = f"{number(same)} of the {total} requests received exactly the same tokens from both engines."
    if same >= total:
        return said
    return f"{said} The others differ, as they may where two logits are nearly equal and the order of a sum decides."


def preemption(run: Any) -> dict[str, str]:
    """The sentence under the preemption figure: counted."""
    series = run["preemption"]
    small, large = (value(cell(series, "computed", row)).middle for row in (0, 1))
    steps, fewer = (value(cell(series, "steps", row)).middle for row in (0, 1))
    count = value(cell(series, "preemptions", 0)).middle
    if None in (small, large, steps, fewer, count) or large <= 0:
        return {"preemption_finding": missing("the cost of preemption").sentence}
    said = (
        f"{number(count)} preemptions, {number(small - large)} tokens computed more than once, "
        f"{percent(small / large - 1)} on top of what was necessary; {number(steps)} steps instead of {number(fewer)}."
    )
    return {"preemption_finding": said}


def swap(run: Any, size: int) -> dict[str, str]:
    """Recompute against swap for `size` bytes of blocks and `SWAP_TOKENS` tokens; run.roofline gives the least time."""
    away = 2 * size / 25e9
    roofline = run.roofline
    if roofline is None:
        return {"swap_finding": missing("the least time of a recomputation").sentence}
    again = roofline.time(
        counts.streamed_bytes(gather_cost.MODEL, "float32"),
        counts.prefill_flops(gather_cost.MODEL, SWAP_TOKENS),
        "float32",
    )
    better = "Swapping" if again > away else "Recomputing"
    return {
        "swap_finding": (
            f"{quantity(size, 'B')} there and back take {quantity(away, 's')}. The recomputation takes at least "
            f"{quantity(again, 's')} here. {better} takes less, by this count."
        )
    }


SWAP_TOKENS = 500
SWAP_BYTES = counts.kv_bytes_per_token(gather_cost.MODEL, "float32") * 512  # in blocks of 16


def published() -> dict[str, str]:
    """The appendix on the published memory in three sentences."""
    found, ran = audit(), stress()
    headline = reference()["headline"]["paged_memory_reduction_bs256"]
    pool = sweeps()["by_batch"]["num_blocks"]
    return {
        "audit_finding": (
            f"The published ratio of {headline} at batch 256 can be counted exactly ({found.ratio[0]:.2f}). It mixes three "
            "choices: a slot for the longest sequence, a reset that for a moment holds its keys twice, and a pool of "
            f"{pool:,} blocks that was fixed in advance. Without the reset it would be {found.ratio[1]:.1f}, and with a "
            f"fitting pool as well {found.ratio[2]:.1f}. Because of the size of that pool, paging takes less memory only "
            f"from batch {found.crossing[0]} on. On equal bytes the same tables show "
            f"{ran['served'] // ran['equal_slots']} times as many sequences: {ran['served']:,} of 50 tokens in the bytes "
            f"of {ran['equal_slots']} slots."
        )
    }


def realistic(tokens: int = 500, promise: int = 4096, memory: float = 80e9) -> dict[str, str]:
    """The chapter's numbers for a 7B model in bfloat16 on an H100, by its data sheet."""
    each = counts.kv_bytes_per_token(LLAMA_7B, "bfloat16")
    free = memory - counts.weight_bytes(LLAMA_7B, "bfloat16")
    slots, blocks = int(free // (promise * each)), int(free // (16 * each))
    fit = blocks // -(-tokens // 16)
    batch = 64
    kept = batch * tokens * each
    other = H100.time(
        counts.streamed_bytes(LLAMA_7B, "bfloat16"),
        batch * counts.decode_flops(LLAMA_7B, 1),
        "bfloat16",
    )
    one, three = (other + n * kept / H100.bandwidth for n in (1, 3))
    return {
        "realistic_finding": (
            f"For a 7B model in bfloat16 on an H100 with 80 GB (3.35 TB/s and 989 TFLOP/s by its data sheet), one token "
            f"takes {quantity(each, 'B')} and {quantity(free, 'B')} are free beside the weights. With up to "
            f"{promise:,} tokens per sequence these are {slots} slots, or {blocks:,} blocks of 16, which hold {fit} sequences of "
            f"{tokens} tokens, {times(fit / slots)} as many. A step of {batch} such sequences takes at least "
            f"{quantity(one, 's')} where each key and value is read once and {quantity(three, 's')} gathered, "
            f"{times(three / one)} as long: the keys and values are more bytes there than the weights."
        )
    }


def predictions(run: Any, gathered: Any = None, counted: Any = None) -> list[Prediction]:
    """The chapter's predictions; `gathered`, `counted`: the runs of the gather and of the counts, where others."""
    gathered, counted = run if gathered is None else gathered, run if counted is None else counted
    series, waste = run[SAME_BYTES], counted["waste"]
    limit, gain = gain_limit(run)
    return [
        Prediction(
            "empty slots per sequence, from blocks of 16",
            cell(waste, "predicted", 0), cell(waste, "counted", 0), "", "tokens",
        ),
        Prediction(
            "sequences at once on the same bytes, from finished lengths",
            cell(series, "predicted_running", 1), cell(series, "peak_running", 1), _young(series), "sequences",
        ),
        Prediction(
            "gain in throughput, from the ratio of the steps",
            limit, gain, _shorter(series, limit, gain), "×", "at most",
        ),
        *gather_cost.predictions(gathered),
    ]  # fmt: skip


def _young(series: Series | None) -> str:
    found = versus_prediction(
        cell(series, "predicted_running", 1), cell(series, "peak_running", 1), ""
    )
    if found.kind in ("little", "failed") and found.direction > 0:
        return "young sequences hold fewer blocks than finished ones"
    return "no cause was measured" if found.kind == "failed" else ""


def _shorter(series: Series | None, limit: float | None, gain: Measured) -> str:
    """Why the gain passed the ratio of the steps, where it did: steps that are not longer with more sequences."""
    got = value(gain).middle
    if not limit or not got or got <= 1.1 * limit:
        return ""
    slow, fast = (
        s / n if s and n else None
        for s, n in zip(_numbers(series, "seconds"), _numbers(series, "steps"))
    )
    if not slow or not fast:
        return "no cause was measured"
    return f"a step with more sequences took {quantity(fast, 's')} on average, one with fewer {quantity(slow, 's')}"


def render(run: Any) -> dict[str, str]:
    """Every sentence of the chapter, by the name under which the chapter glues it."""
    return (
        same_bytes(run)
        | gather_cost.gather(run)
        | preemption(run)
        | swap(run, SWAP_BYTES)
        | published()
        | realistic()
    )
