"""Engines with kv_cache_dtype='int8': tokens of the loop without a cache that rounds the same K and V, in any schedule."""

from __future__ import annotations

from pathlib import Path
from pydoc_data import topics

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lib import LLM, SamplingParams
from lib.attention.gather import GatherAttention
from lib.attention.int8_fused_cpu import Int8CpuFusedAttention
from lib.bench.measure.quality import compare
from lib.bench.measure.rounded_kv import RoundedKVAttention
from lib.cache.int8_kv_cache import int8_kv_bytes_per_token
from lib.core.engine_options import EngineOptions
from lib.serving.server_options import parse
from tests.engine.test_engine_properties import common, run
from tests.families import hf_variant
from tests.helpers import drain, gpt2_checkpoint, llama_checkpoint, prompt_of
from tests.int8_oracle import Int8Tiny

WORK = [(70, 20), (3, 30), (33, 9), (1, 40), (17, 25), (48, 5)]  # (prompt tokens, output tokens)
FIXED = {"num_speculative_tokens": 3, "adaptive": False}


@pytest.fixture(scope="module")
def int8(tmp_path_factory) -> dict[str, Int8Tiny]:
    folder = tmp_path_factory.mktemp("int8")
    return {
        "llama": Int8Tiny(llama_checkpoint(folder / "llama", seed=1)),
        "gpt2": Int8Tiny(gpt2_checkpoint(folder / "gpt2", seed=2)),
        "mistral": Int8Tiny(windowed(folder / "mistral", "mistral")),
        "gemma3": Int8Tiny(windowed(folder / "gemma3", "gemma3")),
    }


def windowed(folder: Path, name: str) -> Path:
    hf_variant(name, seed=1).save_pretrained(folder)
    return folder


def check(tiny: Int8Tiny, engine: LLM, least: float = 0.8) -> None:
    """Tokens are the oracle's as far as they lead by its margin, which is most of them."""
    ids = [
        engine.add_request(
            prompt_of(length, seed), SamplingParams(max_tokens=n, temperature=0, ignore_eos=True)
        )
        for seed, (length, n) in enumerate(WORK)
    ]
    done, compared = drain(engine), 0
    for request_id, (seed, (length, n)) in zip(ids, enumerate(WORK)):
        prompt = prompt_of(length, seed)
        clear = tiny.clear(prompt, n)
        assert done[request_id].token_ids[:clear] == tiny.greedy(prompt, clear)
        compared += clear
    assert compared >= least * sum(n for _, n in WORK)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "options",
    [
        {"kv_cache": "contiguous"},
        {"kv_cache": "contiguous", "max_num_batched_tokens": 7},
        {"attention": "gather"},
        {"attention": "fused"},
        {"attention": "gather", "max_num_batched_tokens": 7},
        {"attention": "fused", "max_num_batched_tokens": 7},
        {"attention": "fused", "max_num_batched_tokens": 40, "block_size": 5, "num_blocks": 100},
        {"attention": "gather", "block_size": 4, "num_blocks": 28, "max_num_seqs": 4},
        {"attention": "fused", "block_size": 1, "num_blocks": 120, "max_num_batched_tokens": 20},
        {
            "attention": "fused",
            "speculative_config": {**FIXED, "method": "early_exit", "draft_layers": 1},
        },
        {
            "attention": "gather",
            "speculative_config": {**FIXED, "method": "ngram", "prompt_lookup_min": 1},
            "block_size": 2,
        },
    ],
    ids=lambda options: " ".join(str(x) for x in options.values()),
)
def test_the_same_tokens_as_without_a_cache(int8, name, options):
    engine = int8[name].engine(**options)
    kinds = {"gather": GatherAttention, "fused": Int8CpuFusedAttention}
    if "attention" in options:
        assert isinstance(engine.runner.attention, kinds[options["attention"]])
    check(int8[name], engine)
    if options.get("num_blocks", 100) in (28, 120):
        assert engine.stats()["preemptions"] > 0
    if "speculative_config" in options:
        assert engine.stats()["draft_tokens"] > engine.stats()["accepted_tokens"]


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
@pytest.mark.parametrize(
    "options",
    [
        {"kv_cache": "contiguous", "max_num_batched_tokens": 7},
        {"attention": "gather", "block_size": 4, "max_num_batched_tokens": 20},
        {"attention": "fused", "block_size": 4, "num_blocks": 100},
        {"attention": "fused", "block_size": 4, "enable_prefix_caching": False},
        {
            "attention": "fused",
            "speculative_config": {**FIXED, "method": "ngram", "prompt_lookup_min": 1},
            "max_num_batched_tokens": 20,
        },
    ],
    ids=lambda options: " ".join(str(x) for x in options.values()),
)
def test_windows_over_a_rounded_cache(int8, name, options):
    """Mistral's layers all have a window, which frees blocks; one of Gemma 3's sees all tokens."""
    engine = int8[name].engine(**options)
    check(int8[name], engine, least=0.7)
    if options.get("kv_cache") != "contiguous":
        assert (engine.manager.window is not None) == (name == "mistral")


def test_a_draft_model_has_a_cache_of_the_same_kind(int8):
    config = {**FIXED, "method": "draft_model", "model": str(int8["llama"].folder)}
    engine = int8["llama"].engine(attention="fused", speculative_config=config)
    check(int8["llama"], engine)
    stats = engine.stats()
    assert stats["draft_kv_cache_bytes"] == stats["kv_cache_bytes"]
    assert stats["accepted_tokens"] > 0.9 * stats["draft_tokens"] > 0


def test_a_prefix_that_is_found_again_gives_the_same_tokens(int8):
    tiny = int8["llama"]
    engine = tiny.engine(attention="fused", block_size=4)
    shared = prompt_of(40, 3)
    prompts = [[*shared, *prompt_of(5, seed)] for seed in range(4)]
    greedy = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    for prompt in prompts:
        (output,) = engine.generate([prompt], greedy)
        clear = tiny.clear(prompt, 8)
        assert output.token_ids[:clear] == tiny.greedy(prompt, clear)
    assert engine.stats()["prefix_hits"] == 3 * 40


def _clear(tiny, work) -> bool:
    return all(
        tiny.clear(prompt_of(job.prompt, job.seed), job.max_tokens) == job.max_tokens
        for job in work
    )


@settings(max_examples=25)
@given(
    **{**common, "name": st.sampled_from(["llama", "gpt2", "mistral"])},
    block_size=st.sampled_from([1, 2, 4, 16]),
    spare=st.integers(0, 6),
    attention=st.sampled_from(["gather", "fused"]),
)
def test_random_traffic_paged(
    int8, work, name, scheduler, max_num_seqs, budget, speculative_config, block_size, spare, attention
):  # fmt: skip
    assume(_clear(int8[name], work))
    longest = max(job.prompt + job.max_tokens for job in work)
    run(
        int8[name],
        work,
        kv_cache="paged",
        attention=attention,
        scheduler=scheduler,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        speculative_config=speculative_config,
        block_size=block_size,
        num_blocks=-(-longest // block_size) + 1 + spare,
    )


@settings(max_examples=15)
@given(**common, spare=st.integers(0, 20))
def test_random_traffic_contiguous(
    int8, work, name, scheduler, max_num_seqs, budget, speculative_config, spare
):
    assume(_clear(int8[name], work))
    run(
        int8[name],
        work,
        kv_cache="contiguous",
        scheduler=scheduler,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        speculative_config=speculative_config,
        max_model_len=max(job.prompt + job.max_tokens for job in work) + spare,
    )


@pytest.mark.parametrize("kv_cache", ["contiguous", "paged"])
def test_a_budget_of_bytes_holds_more_tokens(tmp_path, kv_cache):
    """head_dim 64: 256 bytes per head and token in float32, 64 + 4 in 8 bits."""
    folder = llama_checkpoint(
        tmp_path, hidden_size=128, num_attention_heads=2, num_key_value_heads=1
    )
    room = {}
    for dtype in ("auto", "int8"):
        engine = LLM(
            folder,
            device="cpu",
            kv_cache=kv_cache,
            kv_cache_dtype=dtype,
            kv_cache_memory_bytes=200_000,
            max_num_seqs=8,
        )
        assert 0.9 * 200_000 < engine.stats()["kv_cache_bytes"] <= 200_000
        room[dtype] = engine.kv_cache.num_blocks * engine.kv_cache.block_size
        assert engine.kv_cache.k.dtype == (torch.int8 if dtype == "int8" else torch.float32)
    assert int8_kv_bytes_per_token(engine.config) == 2 * 2 * (64 + 4)
    assert 3.5 < room["int8"] / room["auto"] < 4


def test_a_sequence_with_nan_leaves_nothing_behind(int8):
    """The next owner of the blocks would read it: 0 * NaN is NaN."""
    tiny = int8["llama"]
    engine = tiny.engine(attention="gather", num_blocks=17, enable_prefix_caching=False)
    weight = engine.model.token_embedding.weight
    kept = weight[5].clone()
    with torch.no_grad():
        weight[5] = float("nan")
    greedy = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    (output,) = engine.generate([[5] * 40], greedy)
    assert output.finish_reason == "error" and "not finite" in output.completions[0].error
    with torch.no_grad():
        weight[5] = kept
    assert engine.kv_cache.k_scale.isfinite().all() and engine.kv_cache.v_scale.isfinite().all()
    check(tiny, engine)


def test_options():
    with pytest.raises(ValueError, match="kv_cache_dtype must be 'auto' where kv_cache is 'none'"):
        EngineOptions(kv_cache="none", kv_cache_dtype="int8")
    with pytest.raises(ValueError, match="kv_cache_dtype must be 'auto' with cuda_graphs"):
        EngineOptions(cuda_graphs=True, kv_cache_dtype="int8")
    with pytest.raises(ValueError, match="kv_cache_dtype must be one of .*'int8'.*, got 'fp8'"):
        EngineOptions(kv_cache_dtype="fp8")
    assert parse(["--kv-cache-dtype", "int8"]).llm["kv_cache_dtype"] == "int8"


def test_where_the_kernel_does_not_run_auto_gathers(int8):
    with pytest.warns(UserWarning, match="falls back to 'gather'.*dtype must be one of"):
        engine = int8["llama"].engine(attention="auto", dtype="float16")
    assert isinstance(engine.runner.attention, GatherAttention)
    with pytest.raises(ValueError, match="dtype must be one of"):
        int8["llama"].engine(attention="fused", dtype="float16")


@pytest.mark.slow
def test_the_predictions_of_smollm2_hardly_change():
    engine = LLM("smollm2", device="cpu", dtype="float32", max_model_len=256, num_blocks=17)
    text = "\n".join(topics.topics[name] for name in ("assignment", "class", "lambda"))
    ids = engine.tokenizer.encode(text)[:512]
    found = compare(engine.model, engine.model, ids, attention=RoundedKVAttention())
    assert found.num_tokens == 510 and 0 < found.kl_divergence <= 0.01
    assert found.same_greedy > 0.95
    assert found.perplexity == pytest.approx(found.reference_perplexity, rel=0.01)
