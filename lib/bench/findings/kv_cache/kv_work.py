"""The sentences of chapter 2 about latency, the kind of work, and one realistic setting.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None where it has none.

Introduced in chapter 2.
"""

from typing import Any

from lib.bench.findings.kv_cache.kv_steps import (
    STEPS,
)
from lib.bench.findings.values import (
    cell,
    column,
    ends,
    number,
    percent,
    quantity,
    times,
    value,
)
from lib.bench.findings.vocabulary import (
    Finding,
    compare,
    missing,
    share,
    size_of,
)
from lib.bench.measure import counts
from lib.bench.measure.data_sheets import H100, LLAMA_7B
from lib.bench.measure.roofline import Roofline
from lib.models.checkpoint import GPT2_CONFIG

LATENCY = "latency_by_prompt"


# Latency against the length of the prompt.


def latency(run: Any) -> dict[str, str]:
    """Under the figure of latency by prompt."""
    series = run[LATENCY]
    prompts = column(series, "prompt")
    ours = [(ends(series, "kv_cache")[i], ends(series, "no_cache")[i]) for i in (0, 1)]
    short, long = (compare(*pair, "the answer with the cache", "the one without") for pair in ours)
    if "missing" in (short.kind, long.kind):
        said = missing("the time to answer").sentence
    else:
        said = f"After a prompt of {number(prompts[0])} tokens, {short}; after {number(prompts[-1])}, {long}."
    part = share(ends(series, "first_token")[1], ends(series, "kv_cache")[1])
    rest = missing("the share of the first token").sentence
    if part.ratio is not None and part.kind not in ("failed", "undefined"):
        rest = (
            f"After the longest prompt, {part} of the time with the cache is the first token, which this cache does not "
            "shorten."
        )
    peers = (
        compare(ends(series, "kv_cache")[i], ends(series, "transformers_kv_cache")[i], "this engine", "transformers")
        for i in (0, 1)
    )  # fmt: skip
    near, far = peers
    beside = f"With a cache on both sides, {near} for the shortest prompt; for the longest, {far}."
    if "missing" in (near.kind, far.kind):
        beside = missing("transformers with its cache").sentence
    return {"latency_finding": said, "prefill_share_finding": rest, "latency_peer_finding": beside}


def same_step(run: Any, latency_run: Any) -> Finding:
    """Whether one step without a cache took the same time alone as inside an answer, for the length that both have.

    kind: as `compare`. Two measurements of one thing that disagree say that the machine changed between them.
    """
    alone, inside = run[STEPS], latency_run[LATENCY]
    both = [
        (cell(alone, "no_cache", i), cell(inside, "further_no_cache", j))
        for i, n in enumerate(column(alone, "length"))
        for j, m in enumerate(column(inside, "prompt"))
        if n == m
    ]
    if not both:
        return missing("one step at the same length in both figures")
    return compare(*both[-1], "a step timed alone", "the same step within an answer")


def same(run: Any, latency_run: Any = None) -> dict[str, str]:
    """Whether the two figures of a step without a cache agree; `latency_run`: the run of the latencies, where another."""
    found = same_step(run, run if latency_run is None else latency_run)
    return {"same_step_finding": found.sentence}


# The kind of work.


def profile(run: Any) -> dict[str, str]:
    """Under the figure of the profile."""
    series, spent = run["profile"], run["profile_time"]
    if series is None or not {"no_cache", "kv_cache"} <= series.columns.keys():
        said = missing("the profile").sentence
    else:
        found = {
            stage: {f: s for f, s in zip(series["family"], series[stage]) if s is not None}
            for stage in ("no_cache", "kv_cache")
        }
        kinds = [
            [share(max(0.0, found[stage].get(name, 0.0))) for stage in ("no_cache", "kv_cache")]
            for name in ("gemm", "gemv")
        ]
        (gemm, later_gemm), (gemv, later_gemv) = kinds
        said = (
            f"At {number(series.params['length'])} tokens, products of matrices (gemm) take {gemm} of the computing time "
            f"without a cache, and {later_gemm} with one. Products of a matrix with a vector (gemv) take {gemv} without, "
            f"and {later_gemv} with one."
        )
        if gemv.ratio:
            said += " Without a cache, gemv is the vocabulary matrix, which chapter 1 applies to one row only."
        if not all(found.values()):
            said = missing("the profile").sentence
    before, after = (cell(spent, stage, 0) for stage in ("no_cache", "kv_cache"))
    saved = compare(
        after, before, "the computing of the step with the cache", "that of the step without"
    )
    return {"profile_finding": said, "profile_saved_finding": saved.sentence}


def largest_family(run: Any) -> Finding:
    """The kernel family that takes the largest share of a step with a cache (kind: its name)."""
    series = run["profile"]
    if series is None or "kv_cache" not in series or None in series["kv_cache"]:
        return missing("the profile")
    shares = dict(zip(series["family"], series["kv_cache"]))
    best = max(shares, key=shares.get)
    if shares[best] <= 0:
        return missing("the profile")
    return Finding(f"{best} ({percent(shares[best])})", best, shares[best])


def published_profile(published: Any) -> dict[str, str]:
    """The published profile's computing time and kernels."""
    found = published["profiler"]
    saved = 1 - found["kv_cache_cuda_ms"] / found["no_cache_cuda_ms"]
    return {
        "published_profile_finding": (
            f"In the published profile, of {found['new_tokens']} tokens after a prompt of {found['prompt']}, the computing "
            f"time fell by {percent(saved)}, and the kernel that took most of it "
            f"changed from {found['no_cache_dominant']} to {found['kv_cache_dominant']}."
        )
    }


def utilisation(run: Any) -> dict[str, str]:
    """Under the table of the ceilings' use."""
    series = run["utilisation"]
    before, after = (
        {name: value(cell(series, name, row)).middle for name in ("done", "mfu", "mbu")}
        for row in (0, 1)
    )
    found = [*before.values(), *after.values()]
    if None in found or min(found) <= 0:
        text = missing("the use of the ceilings").sentence
        return {"busy_not_fast_finding": text, "bandwidth_finding": text}
    params = series.params
    twice = counts.generate_flops(
        GPT2_CONFIG, params["prompt"], params["generated"], kv_cache=False
    )
    once = counts.generate_flops(GPT2_CONFIG, params["prompt"], params["generated"])
    busy = (
        f"Without a cache the machine did arithmetic at {percent(before['done'])} of its ceiling; but it did "
        f"{times(twice / once)} the necessary operations. MFU counts only what the answer needs: that is "
        f"{number(100 * before['mfu'])} % of the ceiling without and {number(100 * after['mfu'])} % with a cache."
    )
    if before["done"] > 1.25 * after["done"] and after["mfu"] > 1.25 * before["mfu"]:
        busy += " The busier machine was the slower one."
    read = f"With the cache it read weights, keys and values at {percent(after['mbu'])} of its bandwidth"
    if after["mbu"] > after["mfu"]:
        read += ", which is the ceiling that it is nearer to."
    else:
        read += ", and is nearer to its other ceiling."
    return {"busy_not_fast_finding": busy, "bandwidth_finding": read}  # fmt: skip


def intensity(run: Any) -> dict[str, str]:
    """The arithmetic intensity of a step with a cache against the machine's ridge."""
    series, roofline = run["profile"], run.roofline
    if series is None or roofline is None:
        return {"intensity_finding": missing("the machine's ridge").sentence}
    has = counts.intensity(GPT2_CONFIG, "float32", [series.params["length"]])
    ridge = roofline.ridge("float32")
    side = (
        "so by these ceilings the reading takes longer than the arithmetic"
        if has < ridge
        else "so by these ceilings the arithmetic takes longer than the reading"
    )
    return {
        "intensity_finding": (
            f"The arithmetic intensity of the step with the cache is {has:.1f} FLOP per byte; this machine can do "
            f"{number(ridge)} FLOP in the time in which it reads one byte, {side}."
        )
    }


def crossover(roofline: Roofline | None) -> dict[str, str]:
    """For an exercise: where the bounds of a step without and with a cache separate, in float32 and in bfloat16."""
    if roofline is None or not {"float32", "bfloat16"} <= roofline.flops.keys():
        return {"bf16_crossover_finding": missing("the rate of one of the two dtypes").sentence}
    ratio = counts.kv_bytes_per_token(GPT2_CONFIG, "float32") / counts.streamed_bytes(
        GPT2_CONFIG, "float32"
    )
    ridges = 2 * roofline.ridge("float32"), roofline.ridge("bfloat16")
    before, after = (ridge / max(1e-9, 1 - ridge * ratio) for ridge in ridges)
    moved = "stays about where it is"
    if size_of(after / before) != "about":
        moved = f"moves to {'longer' if after > before else 'shorter'} sequences"
    rate = roofline.flops["bfloat16"] / roofline.flops["float32"]
    return {
        "bf16_crossover_finding": (
            f"The rate changes too: in bfloat16 this machine multiplies at {times(rate)} its float32 rate. So the "
            f"crossover {moved}: {after:.1f} tokens in bfloat16, {before:.1f} in float32."
        )
    }


# One realistic setting.


def realistic_rows() -> list[list[str]]:
    """(quantity, GPT-2's counterpart is in the chapter) for a 7B model in bfloat16 on an H100, by its data sheet."""
    weights = counts.streamed_bytes(LLAMA_7B, "bfloat16")
    token = counts.kv_bytes_per_token(LLAMA_7B, "bfloat16")
    without = H100.time(weights, counts.prefill_flops(LLAMA_7B, 4096), "bfloat16")
    kept = H100.time(
        counts.step_bytes(LLAMA_7B, "bfloat16", [4096]),
        counts.decode_flops(LLAMA_7B, 4096),
        "bfloat16",
    )
    return [
        ["weights that a step reads", quantity(weights, "B")],
        ["K and V of one token", quantity(token, "B")],
        ["K and V of 4,096 tokens", quantity(4096 * token, "B")],
        ["least time of a step at 4,096 tokens, no cache", quantity(without, "s")],
        ["the same with the cache", quantity(kept, "s")],
        ["of which is reading K and V", quantity(4096 * token / H100.bandwidth, "s")],
    ]  # fmt: skip


def realistic() -> dict[str, str]:
    """The chapter's crossover for that setting."""
    ridge = H100.ridge("bfloat16")
    ratio = counts.kv_bytes_per_token(LLAMA_7B, "bfloat16") / counts.streamed_bytes(
        LLAMA_7B, "bfloat16"
    )
    crossover = ridge / (1 - ridge * ratio)
    return {
        "realistic_finding": (
            f"By these two ceilings the two times separate at {crossover:,.0f} tokens, and after "
            f"{1 / ratio:,.0f} tokens, over all sequences, the cache is as large as the weights that a step reads."
        )
    }  # fmt: skip
