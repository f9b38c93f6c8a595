"""Why vLLM is ahead of the published engine at batch 1 and behind it at batch 512: arithmetic on the two published sweeps.

Both were measured by others on the same A100; `published` is `reference()`, `vllm` is `published_vllm()`. Bytes and
operations are counted, the card's rates are its data sheet's. What is counted or divided here is certain; which part of
an engine takes the time that is left is not published, and the sentences say so.

Introduced in chapter 3.
"""

from lib.bench.findings.curves import crossing, trend
from lib.bench.findings.values import number, percent, quantity, times
from lib.bench.findings.vocabulary import capital, compare, share, versus_prediction
from lib.bench.measure import counts
from lib.bench.measure.data_sheets import A100, MISTRAL_7B
from lib.bench.records.files import Reference
from lib.bench.records.published_vllm import PublishedVllm
from lib.models.checkpoint import GPT2_CONFIG

RATE, ENGINE = "tokens/s", "the published engine"
# vLLM's default max_num_seqs for its offline API on an A100 (docs.vllm.ai, engine arguments).
DEFAULT_LIMIT = 256
DTYPES = {"float32": "float32", "bfloat16": "16 bits"}  # and how the text calls them


def engine_steps(published: Reference) -> dict[int, float]:
    """{batch: seconds of the published engine's run per generated token of a sequence}."""
    sweep = published["batch_sweep"]
    return {batch: batch / rate for batch, rate in zip(sweep["batch"], sweep["tok_s"])}


def vllm_steps(vllm: PublishedVllm) -> dict[int, float]:
    """The same of vLLM."""
    return dict(zip(vllm.batch, vllm.step_seconds()))


def rows(published: Reference, vllm: PublishedVllm) -> list[list[str]]:
    """Batch, throughput of both, time of a step of both, for the section's table."""
    ours, theirs = engine_steps(published), vllm_steps(vllm)
    return [
        [f"{b:,}", f"{b / ours[b]:,.0f}", f"{vllm.rate(b):,.0f}", f"{1e3 * ours[b]:.2f}", f"{1e3 * theirs[b]:.2f}"]
        for b in sorted(ours.keys() & theirs.keys())
    ]  # fmt: skip


def sentences(published: Reference, vllm: PublishedVllm) -> dict[str, str]:
    """All sentences of the section, by the name under which the chapter glues them."""
    return {
        "vllm_ends_finding": _ends(published, vllm),
        "vllm_bytes_finding": _bytes(published, vllm),
        "vllm_kernels_finding": _kernels(published, vllm),
        "vllm_sequence_finding": _sequence(published, vllm),
        "vllm_lines_finding": _lines(published, vllm),
        "vllm_limit_finding": _limit(vllm),
        "vllm_noise_finding": _noise(vllm),
        "vllm_large_model_finding": f"{large_model(vllm)} {_small_model(vllm)}",
    }


def _ends(published: Reference, vllm: PublishedVllm) -> str:
    said = []
    sweep = published["batch_sweep"]
    ours = dict(zip(sweep["batch"], sweep["tok_s"]))
    for batch in (sweep["batch"][0], sweep["batch"][-1]):
        found = compare(vllm.rate(batch), ours[batch], "vLLM", ENGINE, what="throughput", unit=RATE)
        said.append(f"at batch {batch}, {found}")
    return f"{capital('; '.join(said))}."


def _weight_seconds(dtype: str) -> float:
    return counts.streamed_bytes(GPT2_CONFIG, dtype) / A100.bandwidth


def _bytes(published: Reference, vllm: PublishedVllm) -> str:
    """Whether the bandwidth bounds a step of one sequence."""
    reads = " or ".join(
        f"{quantity(_weight_seconds(dtype), 's')} in {name}" for dtype, name in DTYPES.items()
    )
    steps = {ENGINE: engine_steps(published)[1], "vLLM": vllm_steps(vllm)[1]}
    taken = " and ".join(
        f"{name} takes {quantity(step, 's')} ({times(step / _weight_seconds('float32'))} the time for float32)"
        for name, step in steps.items()
    )
    least = min(steps.values()) / _weight_seconds("float32")
    said = f"At {quantity(A100.bandwidth, 'B/s')}, reading GPT-2's weights takes {reads}. For a step of one sequence {taken}"
    if least > 2:
        return f"{said}. So bandwidth limits neither of them, whatever vLLM's dtype was."
    return f"{said}. These numbers do not exclude that bandwidth limits one of them."


def _kernels(published: Reference, vllm: PublishedVllm) -> str:
    """How long the published engine's GPU works in a step of one sequence, by its own published profile."""
    profiled = published["profiler"]
    kernels = profiled["kv_cache_cuda_ms"] / 1e3 / profiled["new_tokens"]
    step, theirs = engine_steps(published)[1], vllm_steps(vllm)[1]
    rest = max(0.0, step - kernels)
    said = (
        f"By its published profile, the kernels of {ENGINE} take {quantity(kernels, 's')} per token. That is "
        f"{share(kernels, step)} of the step, and for the other {quantity(rest, 's')} the GPU has nothing to do"
    )
    if theirs < rest:
        return f"{said}. All of vLLM's step, {quantity(theirs, 's')}, is shorter than that wait."
    return f"{said}. vLLM's step, {quantity(theirs, 's')}, is no shorter than that wait."


def _slope(steps: dict[int, float], last: int) -> float:
    """Seconds that each further sequence adds to a step, from the smallest batch to `last`."""
    first = min(steps)
    return (steps[last] - steps[first]) / (last - first)


def _sequence(published: Reference, vllm: PublishedVllm) -> str:
    """What one more sequence adds to a step, beside its operations and its bytes."""
    slopes = {ENGINE: engine_steps(published), "vLLM": vllm_steps(vllm)}
    slopes = {name: _slope(steps, DEFAULT_LIMIT) for name, steps in slopes.items()}
    added = " and ".join(
        f"{quantity(slope, 's')} to a step of {name}" for name, slope in slopes.items()
    )
    work = counts.decode_flops(GPT2_CONFIG, vllm.new_tokens) / A100.rate("float32")
    said = (
        f"From batch 1 to {DEFAULT_LIMIT}, each further sequence adds {added}. Its operations take {quantity(work, 's')} of "
        f"these in float32, at the data sheet's {quantity(A100.rate('float32'), 'FLOP/s')}."
    )
    more = slopes["vLLM"] - slopes[ENGINE]
    if slopes[ENGINE] < work or more <= 0.1 * slopes[ENGINE]:
        return f"{said} So these numbers do not show that vLLM spends more per sequence than its products need."
    return (
        f"{said} {capital(ENGINE)} does all arithmetic of a sequence, in float32, within its {quantity(slopes[ENGINE], 's')}. "
        f"Unless vLLM's kernels are slower than those, the other {quantity(more, 's')}, {percent(more / slopes['vLLM'])} of "
        "what it adds, are not arithmetic."
    )


def _lines(published: Reference, vllm: PublishedVllm) -> str:
    """Where two straight lines, a cost per step and a cost per sequence, cross, and where the measured curves do."""
    ours, theirs = engine_steps(published), vllm_steps(vllm)
    batches = sorted(ours.keys() & theirs.keys())
    measured = crossing(
        batches, [b / theirs[b] for b in batches], [b / ours[b] for b in batches], "vLLM's throughput", f"that of {ENGINE}",
    )  # fmt: skip
    fixed = ours[batches[0]] - theirs[batches[0]]
    slope = _slope(theirs, DEFAULT_LIMIT) - _slope(ours, DEFAULT_LIMIT)
    if fixed * slope <= 0:
        return f"Two straight lines through batch 1 and {DEFAULT_LIMIT} do not cross. Measured, {measured}."
    foretold = batches[0] + fixed / slope
    said = (
        f"Taken as straight lines through batch 1 and {DEFAULT_LIMIT}, a cost per step and a cost per sequence, the two "
        f"steps are equally long at batch {number(round(foretold))}. Measured, {measured}"
    )
    if measured.kind != "crosses":
        return f"{said}."
    below = max(b for b in batches if b < measured.ratio)
    inside = below <= foretold <= measured.ratio
    return f"{said}: {'as the lines predict' if inside else 'the lines fail'}."


def _limit(vllm: PublishedVllm) -> str:
    """Batch 512 as two batches of 256, by vLLM's default limit."""
    large = vllm.batch[-1]
    waves = -(-large // DEFAULT_LIMIT)
    foretold, got = waves * vllm.seconds(DEFAULT_LIMIT), vllm.seconds(large)
    found = versus_prediction(foretold, got, "s")
    return (
        f"On an A100, vLLM runs at most {DEFAULT_LIMIT} sequences at once unless told otherwise. If that limit was in force, "
        f"batch {large} ran as {waves} batches of {DEFAULT_LIMIT}, one after the other, and its throughput could not be above "
        f"that of batch {DEFAULT_LIMIT}. By that model its run takes {quantity(foretold, 's')}: {found}."
    )


def _noise(vllm: PublishedVllm) -> str:
    shape = trend(vllm.batch, vllm.batch_tok_s, RATE, "batch {}")
    said = f"Over the whole sweep, vLLM's throughput {shape}."
    if shape.kind in ("varies", "peaks", "dips"):
        said += " With one run per point, such a curve shows an effect, but not its exact size."
    return said


def large_model(vllm: PublishedVllm) -> str:
    """Mistral 7B by vLLM on the same card: the share of its step that the reading of weights takes."""
    step = vllm.mistral.step_seconds()[0]
    reads = {
        dtype: counts.streamed_bytes(MISTRAL_7B, dtype) / A100.bandwidth for dtype in DTYPES
    }  # seconds
    said = f"For Mistral 7B on the same card vLLM takes {quantity(step, 's')} per token."
    if reads["float32"] > step >= reads["bfloat16"]:
        said += (
            f" Its weights alone would take {quantity(reads['float32'], 's')} in float32, so it ran in 16 bits or fewer; in "
            f"16 bits they take {quantity(reads['bfloat16'], 's')}, {percent(reads['bfloat16'] / step)} of the step."
        )
    else:
        said += f" In 16 bits its weights take {quantity(reads['bfloat16'], 's')}."
    return said


def _small_model(vllm: PublishedVllm) -> str:
    part = _weight_seconds("float32") / vllm_steps(vllm)[1]
    return f"For GPT-2 at batch 1 that share is at most {percent(part)}."


def host(vllm: PublishedVllm) -> str:
    """GPT-2 by vLLM, one sequence, its longest answer: the part of a step that reading the weights can explain."""
    step = 1 / vllm.generated_tok_s[-1]
    reads = [_weight_seconds(dtype) for dtype in ("bfloat16", "float32")]
    said = (
        f"For GPT-2 vLLM takes {quantity(step, 's')} per token over an answer of {vllm.generated[-1]:,} tokens. Reading the "
        f"weights takes {quantity(reads[0], 's')} in 16 bits and {quantity(reads[1], 's')} in float32"
    )
    if step > 2 * reads[1]:
        return (
            f"{said}, at most {percent(reads[1] / step)} of that: what the bytes do not explain is the larger part, "
            "although vLLM records its steps unless told otherwise."
        )
    return f"{said}, so the bytes may explain most of that."
