"""What else an engine can do, on two or three ranks: int8 K and V, fused layers, windows, structured outputs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import assume, given, settings

from lib import SamplingParams
from lib.cache.int8_kv_cache import Int8KVCache
from tests.engine.test_engine_properties import jobs, run
from tests.engine.test_structured_outputs import bytes_model  # noqa: F401
from tests.engine.test_tensor_parallel import GREEDY, LLAMA, NGRAM, SMALL_POOL, Shared
from tests.families import hf_variant
from tests.helpers import llama_checkpoint, prompt_of
from tests.int8_oracle import Int8Tiny

INT8 = {
    "gather": dict(model="kv3", max_num_batched_tokens=8, **SMALL_POOL),
    "fused, 1 K/V head in 3 ranks": dict(
        model="kv1", attention="fused", tensor_parallel_size=3, **SMALL_POOL
    ),
    "contiguous, drafts": dict(model="kv3", kv_cache="contiguous", speculative_config=NGRAM),
}
FLOATS = {
    "fused layers": dict(model="kv3", linear="fused", attention="fused", **SMALL_POOL),
    "windows, prefix caching": dict(model="windows", block_size=4, num_blocks=13),
    "windows, static, fused": dict(
        model="windows", attention="fused", scheduler="static", enable_prefix_caching=False
    ),
}


class SharedInt8(Shared, Int8Tiny):
    """A checkpoint and one engine for it that keeps K and V in 8 bits."""


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """Engines by name, built when first asked for."""
    root: Path = tmp_path_factory.mktemp("parallel")
    hf_variant("mistral", seed=1).save_pretrained(root / "windows")
    for heads in (1, 3):
        llama_checkpoint(root / f"kv{heads}", seed=1, **LLAMA, num_key_value_heads=heads)

    @cache
    def get(name: str) -> Shared:
        options = dict({**INT8, **FLOATS}[name])
        kind = SharedInt8 if name in INT8 else Shared
        built.append(kind(root / options.pop("model"), options))
        return built[-1]

    built: list[Shared] = []
    yield get
    for tiny in built:
        tiny.shared.close()


@pytest.mark.parametrize("name", FLOATS)
@settings(max_examples=3)
@given(work=jobs)
@pytest.mark.slow
def test_random_traffic_gives_the_oracle_s_tokens(engines, name, work):
    run(engines(name), work)


@pytest.mark.parametrize("name", INT8)
@settings(max_examples=3)
@given(work=jobs)
@pytest.mark.slow
def test_random_traffic_with_int8_k_and_v(engines, name, work):
    tiny = engines(name)
    for job in work:
        assume(tiny.clear(prompt_of(job.prompt, job.seed), job.max_tokens) == job.max_tokens)
    run(tiny, work)


@pytest.mark.parametrize("name", INT8)
def test_int8_k_and_v_are_in_all_ranks(engines, name):
    """Counted: codes and scales of each rank's heads; and rounding that the tokens show."""
    tiny = engines(name)
    llm, config = tiny.shared, tiny.model.config
    assert isinstance(llm.kv_cache.own, Int8KVCache)
    ranks = llm.options.tensor_parallel_size
    heads = max(config.num_kv_heads, ranks)  # a K/V head is in several ranks where there are fewer
    slots = llm.kv_cache.num_blocks * llm.kv_cache.block_size
    per_slot = 2 * config.num_layers * heads * (config.head_dim + 4)
    assert llm.stats()["kv_cache_bytes"] == slots * per_slot
    prompts = [prompt_of(20, seed) for seed in range(4)]
    compared = 0
    for prompt, output in zip(prompts, llm.generate(prompts, GREEDY)):
        clear = tiny.clear(prompt, 12)
        assert output.token_ids[:clear] == tiny.greedy(prompt, clear)
        compared += clear
    assert compared > 0.5 * 12 * len(prompts)


def test_the_layers_are_fused_and_the_windows_free_their_blocks(engines):
    assert engines("fused layers").shared.fused_blocks > 0
    tiny = engines("windows, prefix caching")
    llm = tiny.shared
    before = llm.stats()["preemptions"]
    longest = SamplingParams(max_tokens=28, temperature=0, ignore_eos=True)
    prompts = [prompt_of(20, seed) for seed in (1, 2)]
    for prompt, output in zip(prompts, llm.generate(prompts, longest)):
        assert output.token_ids == tiny.greedy(prompt, 28)
    # Together 24 blocks of 4, of which the pool has 12: both have run at once, with the blocks of their windows.
    assert llm.stats()["preemptions"] == before


REQUESTS = {
    "regex": dict(structured_outputs={"regex": "[a-d]{3,7}"}, temperature=0, max_tokens=12),
    "choice": dict(structured_outputs={"choice": ["abc", "bcd", "cda"]}, seed=1, max_tokens=12),
    "sampled, n, logprobs": dict(n=3, temperature=0.9, seed=5, logprobs=3, max_tokens=9),
    "prompt logprobs": dict(prompt_logprobs=2, temperature=0, max_tokens=3),
    "penalties, bias": dict(
        temperature=0.7, seed=3, repetition_penalty=1.3, logit_bias={5: 4.0}, max_tokens=9
    ),
}


@pytest.fixture(scope="module")
def pair(bytes_model):  # noqa: F811
    """The same model in one process and in two."""
    alone = bytes_model.engine()
    two = bytes_model.engine(tensor_parallel_size=2, max_num_batched_tokens=16)
    yield alone, two
    two.close()


def test_all_kinds_of_requests_in_one_batch_are_answered_as_by_one_process(pair):
    params = [SamplingParams(**{"ignore_eos": False, **given}) for given in REQUESTS.values()]
    prompts = [prompt_of(10 + i, i) for i in range(len(params))]
    alone, two = (llm.generate(prompts, params) for llm in pair)
    for name, one, many in zip(REQUESTS, alone, two):
        texts = [c.text for c in many.completions]
        assert texts == [c.text for c in one.completions], name
        for a, b in zip(one.completions, many.completions):
            assert b.token_ids == a.token_ids and b.finish_reason == a.finish_reason
            _same_logprobs(a.logprobs, b.logprobs)
        _same_logprobs(one.prompt_logprobs, many.prompt_logprobs)
    assert two[1].text in REQUESTS["choice"]["structured_outputs"]["choice"]
    assert two[2].logprobs and two[3].prompt_logprobs


def _same_logprobs(ours: list | None, theirs: list | None) -> None:
    assert (ours is None) == (theirs is None)
    for a, b in zip(ours or [], theirs or [], strict=True):
        if a is None:
            assert b is None
            continue
        assert list(a) == list(b)
        assert list(a.values()) == pytest.approx(list(b.values()), abs=1e-4)
