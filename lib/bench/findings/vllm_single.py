"""Sentences on vLLM's published figures for one sequence, by prompt and by generated tokens, beside the published engine's.

`published` is `reference()`, `vllm` is `published_vllm()`; both were measured by others, on the same card.

Introduced in chapter 1.
"""

from lib.bench.findings.curves import growth, trend
from lib.bench.findings.values import quantity, times
from lib.bench.findings.vocabulary import compare, missing
from lib.bench.records.files import Reference
from lib.bench.records.published_vllm import PublishedVllm

RATE = "tokens/s"
ENGINE = "the published engine"


def by_prompt(published: Reference, vllm: PublishedVllm) -> dict[str, str]:
    """How the time of a token grows with the prompt: without a cache in the published engine, and in vLLM."""
    table = published["latency_by_prompt_50_new_tokens"]
    ends = [[1e3 * t for t in vllm.gpt2.step_seconds()][i] for i in (0, -1)]
    without = growth(table["no_cache_s"][0], table["no_cache_s"][-1])
    grown = growth(*ends)
    if grown is None or without is None:
        return {"vllm_prompt_finding": missing("vLLM's time by prompt").sentence}
    first, last = vllm.gpt2.prompt[0], vllm.gpt2.prompt[-1]
    said = (
        f"From a prompt of {first} tokens to one of {last}, its time per token goes from {quantity(ends[0], 'ms')} to "
        f"{quantity(ends[1], 'ms')} ({times(grown)}), that of {ENGINE} without a cache grows {times(without)}."
    )
    return {"vllm_prompt_finding": f"{said} {vllm.caveat_of_one_sequence}"}


def by_generated(vllm: PublishedVllm) -> dict[str, str]:
    """vLLM's throughput against the length of the answer."""
    shape = trend(vllm.generated, vllm.generated_tok_s, RATE, "{} tokens")
    ends = f"{vllm.generated[0]} to {vllm.generated[-1]:,} tokens"
    return {
        "vllm_generated_finding": f"As its answer grows from {ends}, vLLM's throughput {shape}."
    }


def with_caches(published: Reference, vllm: PublishedVllm) -> dict[str, str]:
    """The published engine with its cache and vLLM, at the longest answer that both have."""
    table = published["throughput_by_generated_tokens"]
    ours, theirs = (
        dict(zip(table["tokens"], table["kv_cache_tok_s"])),
        dict(zip(vllm.generated, vllm.generated_tok_s)),
    )
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return {"vllm_cache_finding": missing("an answer of one length by both").sentence}
    found = compare(theirs[both[-1]], ours[both[-1]], "vLLM", ENGINE, what="throughput", unit=RATE)
    said = f"Over {both[-1]:,} tokens, with a cache in both, {found}."
    return {"vllm_cache_finding": f"{said} {vllm.caveat_of_one_sequence}"}
