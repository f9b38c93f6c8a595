"""The sentences of chapter 4 that depend on what was measured, and its predictions.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None
where it has none. The sentences about the same bytes stand in `paged_gain`, those about the gather
in `gather_cost`.

Introduced in chapter 4.
"""

from typing import Any

from lib.bench.findings.paged_cache import gather_cost, paged_gain
from lib.bench.findings.paged_cache.published_memory import audit, stress, sweeps
from lib.bench.findings.predictions import Prediction
from lib.bench.findings.values import cell, number, percent, quantity, times, value
from lib.bench.findings.vocabulary import missing
from lib.bench.measure import counts
from lib.bench.measure.data_sheets import H100, LLAMA_7B
from lib.bench.records.files import reference
from lib.models.checkpoint import GPT2_CONFIG

MODEL = GPT2_CONFIG
SWAP_TOKENS = 500
SWAP_BYTES = counts.kv_bytes_per_token(MODEL, "float32") * 512  # in blocks of 16


def preemption(run: Any) -> dict[str, str]:
    """The sentence under the preemption figure: counted."""
    series = run["preemption"]
    small, large = (value(cell(series, "computed", row)).middle for row in (0, 1))
    steps, fewer = (value(cell(series, "steps", row)).middle for row in (0, 1))
    count = value(cell(series, "preemptions", 0)).middle
    if None in (small, large, steps, fewer, count) or large <= 0:
        return {"preemption_finding": missing("the cost of preemption").sentence}
    said = (
        f"{number(count)} preemption{'s' * (count != 1)}, and {number(small - large)} tokens computed more than once, "
        f"{percent(small / large - 1)} on top of what was necessary; {number(steps)} steps in place of {number(fewer)}."
    )
    return {"preemption_finding": said}


def swap(run: Any, size: int) -> dict[str, str]:
    """Recompute against swap for `size` bytes of blocks and `SWAP_TOKENS` tokens; run.roofline gives the least time."""
    away = 2 * size / 25e9
    roofline = run.roofline
    if roofline is None:
        return {"swap_finding": missing("the least time of a recomputation").sentence}
    again = roofline.time(
        counts.streamed_bytes(MODEL, "float32"),
        counts.prefill_flops(MODEL, SWAP_TOKENS),
        "float32",
    )
    better = "Swapping" if again > away else "Recomputing"
    return {
        "swap_finding": (
            f"{quantity(size, 'B')} there and back take {quantity(away, 's')}. The recomputation takes at least "
            f"{quantity(again, 's')} here. {better} takes less, by this count."
        )
    }


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
    waste = counted["waste"]
    return [
        Prediction(
            "empty slots per sequence, from blocks of 16",
            cell(waste, "predicted", 0), cell(waste, "counted", 0), "", "tokens",
        ),
        *paged_gain.predictions(run),
        *gather_cost.predictions(gathered),
    ]  # fmt: skip


def render(run: Any) -> dict[str, str]:
    """Every sentence of the chapter, by the name under which the chapter glues it."""
    return (
        paged_gain.same_bytes(run)
        | gather_cost.gather(run)
        | preemption(run)
        | swap(run, SWAP_BYTES)
        | published()
        | realistic()
    )
