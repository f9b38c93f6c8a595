"""The steps of chapters 10 to 12 for one realistic setting: a 7B model in bfloat16 on an H100, by its data sheet.

All times are the larger of bytes over bandwidth and operations over rate, so they are least times.

Introduced in chapter 10.
"""

from lib.bench.findings.batching.batch_counts import room
from lib.bench.findings.values import percent, quantity, times
from lib.bench.measure import counts
from lib.bench.measure.data_sheets import H100, LLAMA_7B
from lib.bench.measure.speculation_model import expected_tokens

DTYPE = "bfloat16"
SHORT, LONG = 128, 1000  # tokens of context per sequence
ALPHA, DRAFTS = 0.7, 4
# Bits per weight with the scales: one per row, or a scale and a minimum per 32 weights (Q4_1).
FORMATS = (("bfloat16", 16), ("8 bits", 8), ("4 bits", 5))
BATCH = 64
HEAD_SCALE = 4  # bytes: a float32 scale per key or value of a head


def _step(batch: int, context: int, drafts: int = 0) -> float:
    """Least seconds of a step that computes `1 + drafts` tokens of each sequence."""
    rows = drafts + 1
    computed = counts.flops(LLAMA_7B, rows, context + drafts, logits=rows)
    read = counts.step_bytes(LLAMA_7B, DTYPE, [context + drafts] * batch)
    return H100.time(read, batch * computed, DTYPE)


def _with_drafts(batch: int, context: int) -> tuple[float, float, float]:
    """(seconds without drafts, seconds with them, throughput with over without); drafts take no time themselves."""
    plain, verifying = _step(batch, context), _step(batch, context, DRAFTS)
    return plain, verifying, expected_tokens(ALPHA, DRAFTS) * plain / verifying


def speculation_rows() -> list[list[str]]:
    """(context, sequences, step without drafts, step with drafts, throughput) for one sequence and for a full memory."""
    return [
        [
            f"{context:,}",
            f"{batch:,}",
            quantity(plain, "s"),
            quantity(verifying, "s"),
            f"{gain:.2f}",
        ]
        for context in (SHORT, LONG)
        for batch in (1, room(context))
        for plain, verifying, gain in [_with_drafts(batch, context)]
    ]


def speculation() -> dict[str, str]:
    """Whether drafts still gain where memory is full, with long contexts and with short ones."""
    said = [
        f"With one sequence, drafts give {times(_with_drafts(1, LONG)[2])} the throughput at most."
    ]
    for context in (LONG, SHORT):
        batch = room(context)
        plain, verifying, gain = _with_drafts(batch, context)
        longer = verifying / plain
        taken = "about as long" if longer < 1.05 else f"{times(longer)} as long"
        grows = f"a step of the {batch:,} that fit takes {taken} with drafts as without"
        result = f"so the throughput is {times(gain)} that without drafts"
        said.append(f"With contexts of {context:,} tokens {grows}, {result}.")
    why = (
        "The difference is the cache: its bytes are read once per sequence, whatever the number of rows, so with long "
        "contexts reading remains the limit."
    )
    return {"realistic_finding": " ".join([*said, why])}


def _weight_seconds(bits: int) -> float:
    """Seconds to read the weights of a step with `bits` per weight."""
    return counts.streamed_bytes(LLAMA_7B, DTYPE) * bits / 16 / H100.bandwidth


def _cache_bytes(int8: bool) -> float:
    """Bytes of keys and values per token, in bfloat16 or as codes of 8 bits with a scale per head."""
    plain = counts.kv_bytes_per_token(LLAMA_7B, DTYPE)
    width = LLAMA_7B.head_dim
    return plain * (width + HEAD_SCALE) / (2 * width) if int8 else plain


def quantisation_rows() -> list[list[str]]:
    """(weights, GB, n*, step of one sequence, step of 64 with a bfloat16 cache, the same with an 8-bit cache)."""
    rows = []
    for name, bits in FORMATS:
        weights = _weight_seconds(bits)
        caches = [BATCH * LONG * _cache_bytes(int8) / H100.bandwidth for int8 in (False, True)]
        rows.append(
            [
                name,
                f"{weights * H100.bandwidth / 1e9:.1f}",
                f"{H100.ridge(DTYPE) * bits / 16:,.0f}",
                quantity(weights + caches[0] / BATCH, "s"),
                *(quantity(weights + cache, "s") for cache in caches),
            ]
        )
    return rows


def quantisation() -> dict[str, str]:
    """How much of a step's least time fewer bits save there, at batch 1 and at batch 64."""
    whole, least = _weight_seconds(FORMATS[0][1]), _weight_seconds(FORMATS[-1][1])
    cache, small = (BATCH * LONG * _cache_bytes(int8) / H100.bandwidth for int8 in (False, True))
    one = (whole + cache / BATCH) / (least + cache / BATCH)
    return {
        "realistic_finding": (
            f"By these bounds 4 bits make a step of one sequence {times(one)} as fast. At batch {BATCH} most of the bytes "
            f"are keys and values: there 4-bit weights alone give {times((whole + cache) / (least + cache))} the speed, an "
            f"8-bit cache alone {times((whole + cache) / (whole + small))}, and both {times((whole + cache) / (least + small))}."
        )
    }


def masks() -> dict[str, str]:
    """The bytes of a batch's masks beside those of its step, and the time in which its masks have to be found."""
    vocab = LLAMA_7B.vocab_size
    moved = BATCH * (
        vocab // 8 + 2 * 4 * vocab
    )  # one bit per token; float32 logits, read and written
    read = counts.step_bytes(LLAMA_7B, DTYPE, [LONG] * BATCH)
    step = _step(BATCH, LONG)
    return {
        "realistic_finding": (
            f"With its vocabulary of {vocab:,} tokens, {BATCH} masks and their logits are {quantity(moved, 'B')}, "
            f"{percent(moved / read)} of the {quantity(read, 'B')} that a step of {BATCH} sequences of {LONG:,} tokens "
            f"reads. The step takes at least {quantity(step, 's')}. One thread that finds all masks beside the model has "
            f"{quantity(step / BATCH, 's')} for each; with one sequence it has {quantity(_step(1, LONG), 's')}."
        )
    }
