"""Engines on models with sliding windows: the oracle's tokens, and a cache that does not grow beyond the window."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import SamplingParams
from lib.attention.fused_cpu import CpuFusedAttention
from lib.attention.gather import GatherAttention
from lib.cache.block_manager import NULL_BLOCK
from lib.cache.sliding_window import SlidingWindowPrefixCache
from lib.core.batch import Batch
from lib.core.request import Request
from tests.engine.test_engine_properties import SPECULATION, jobs, run
from tests.families import VARIANTS, WINDOW, hf_variant
from tests.helpers import Tiny, check_books, check_empty, drain, prompt_of

CACHES = [
    dict(kv_cache="none"),
    dict(kv_cache="contiguous"),
    dict(kv_cache="paged", attention="gather", enable_prefix_caching=False),
    dict(kv_cache="paged", attention="gather", enable_prefix_caching=True),
    dict(kv_cache="paged", attention="fused", enable_prefix_caching=False),
    dict(kv_cache="paged", attention="fused", enable_prefix_caching=True),
]
# Biases and tied heads are no concern of a cache, and of two variants that attend alike one is enough.
ALIKE = {"gemma", "gemma2-no-caps", "gemma3-all-windows"}
ALIKE |= {"mixtral", "qwen2_moe", "qwen3_moe-windows"}
NAMES = [n for n in VARIANTS if n not in ALIKE and not n.endswith(("tied", "biases", "list"))]
GREEDY = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def tinies(tmp_path_factory):
    @cache
    def tiny(name: str) -> Tiny:
        folder = tmp_path_factory.mktemp(name)
        hf_variant(name, seed=1).save_pretrained(folder)
        return Tiny(folder)

    return tiny


@pytest.mark.parametrize("options", CACHES, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("name", NAMES)
def test_every_cache_gives_the_oracle_s_tokens(tinies, name, options):
    tiny = tinies(name)
    if tiny.model.config.attention_softcap is not None and options.get("attention") == "fused":
        with pytest.raises(ValueError, match="plain scores: attn_logit_softcapping must be None"):
            tiny.engine(**options)
        return
    engine = tiny.engine(**options, max_num_batched_tokens=16)
    prompts = [prompt_of(n, 1) for n in (1, 5, 23, 40)]
    prompts.append([*prompts[2], 9, 8])  # shares a prefix
    outputs = engine.generate(prompts, GREEDY)
    again = engine.generate(prompts, GREEDY)
    for prompt, first, second in zip(prompts, outputs, again):
        assert first.token_ids == second.token_ids == tiny.greedy(prompt, 20)
    assert engine.manager.num_queries == 0 or engine.manager.num_hits > 0
    check_empty(engine)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "mixtral-windows", "qwen3_moe"])
def test_the_answers_depend_on_what_is_cached(tinies, name):
    """Another token at the beginning, or just within the window, changes the logits."""
    tiny, prompt = tinies(name), prompt_of(12, 1)
    exact = tiny.logits(prompt)
    for position in (0, len(prompt) - WINDOW, len(prompt) - 2):
        changed = [*prompt[:position], (prompt[position] + 1) % 61, *prompt[position + 1 :]]
        assert (tiny.logits(changed) - exact).abs().max() > 0.05
    assert len(set(tiny.greedy(prompt, 20))) > 5


@settings(max_examples=25)
@given(
    work=jobs,
    name=st.sampled_from(
        ["mistral", "qwen2-windows", "qwen3-layer-types", "olmo2", "gemma3", "mixtral-windows"]
    ),
    attention=st.sampled_from(["gather", "fused"]),
    budget=st.sampled_from([1, 3, 8, 40]),
    block_size=st.sampled_from([1, 2, 4, 16]),
    prefix=st.booleans(),
    speculative_config=st.sampled_from(SPECULATION),
    asynchronous=st.booleans(),
    spare=st.integers(0, 6),
)
def test_random_traffic_on_windows(
    tinies,
    work,
    name,
    attention,
    budget,
    block_size,
    prefix,
    speculative_config,
    asynchronous,
    spare,
):
    longest = max(job.prompt + job.max_tokens for job in work)
    run(
        tinies(name),
        work,
        kv_cache="paged",
        attention=attention,
        max_num_seqs=4,
        max_num_batched_tokens=budget,
        enable_prefix_caching=prefix,
        speculative_config=speculative_config,
        async_scheduling=asynchronous and speculative_config is None,
        block_size=block_size,
        num_blocks=-(-longest // block_size) + 1 + spare,
    )


@pytest.mark.parametrize("method", ["early_exit", "draft_model"])
@pytest.mark.parametrize("name", ["mistral", "gemma3", "mixtral-windows"])
def test_drafts_of_a_model_with_windows(tinies, name, method):
    """The drafts' own passes keep to the windows as well, and blocks behind them are given back."""
    tiny = tinies(name)
    own = {"draft_layers": 1} if method == "early_exit" else {"model": str(tiny.folder)}
    engine = tiny.engine(
        speculative_config={
            "method": method,
            "num_speculative_tokens": 3,
            "adaptive": False,
            **own,
        },
        attention="fused",
        block_size=2,
        max_num_batched_tokens=16,
    )
    prompts = [prompt_of(n, 1) for n in (1, 5, 23)]
    for prompt, output in zip(prompts, engine.generate(prompts, GREEDY)):
        assert output.token_ids == tiny.greedy(prompt, 20)
    stats = engine.stats()
    assert stats["draft_tokens"] > 0
    if method == "draft_model":  # a model accepts all of its own drafts
        assert stats["accepted_tokens"] == stats["draft_tokens"]
    check_empty(engine)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_a_long_answer_holds_no_more_blocks_than_its_window(tinies, block_size, prefix):
    engine = tinies("mistral").engine(
        block_size=block_size, num_blocks=130, enable_prefix_caching=prefix
    )
    engine.add_request(
        prompt_of(3, 1), SamplingParams(max_tokens=90, temperature=0, ignore_eos=True)
    )
    held = []
    while engine.has_unfinished():
        engine.step()
        check_books(engine)
        for request in engine.scheduler.running:
            held.append(sum(block != NULL_BLOCK for block in request.block_ids))
    assert len(held) > 80
    # The WINDOW - 1 keys that the next query sees before its own, which may begin and end within a block.
    assert max(held) == -(-(WINDOW - 2) // block_size) + 1
    check_empty(engine)


def test_a_layer_that_sees_all_keeps_all_blocks(tinies):
    engine = tinies("qwen3-layer-types").engine(block_size=4)
    engine.add_request(prompt_of(3, 1), GREEDY)
    for _ in range(18):
        engine.step()
    (request,) = engine.scheduler.running
    assert NULL_BLOCK not in request.block_ids and len(request.block_ids) >= 5


def test_blocks_behind_the_window_serve_other_requests(tinies):
    """So many long answers fit at once only because each holds a window of them."""
    tiny = tinies("mistral")
    engine = tiny.engine(block_size=4, num_blocks=30, enable_prefix_caching=False)
    prompts = [prompt_of(4, seed) for seed in range(8)]
    for prompt in prompts:
        engine.add_request(prompt, SamplingParams(max_tokens=60, temperature=0, ignore_eos=True))
    outputs = drain(engine)
    assert engine.stats()["preemptions"] == 0 and 8 * 64 > 29 * 4
    for prompt, output in zip(prompts, outputs.values()):
        assert output.token_ids == tiny.greedy(prompt, 60)


def request(tokens: list[int]) -> Request:
    return Request("r", tokens, SamplingParams(max_tokens=50))


def compute(manager: SlidingWindowPrefixCache, tokens: list[int]) -> Request:
    """Admit a request and compute all of its tokens, four at a time."""
    new = request(tokens)
    new.num_computed_tokens = manager.admit(new)
    while new.num_computed_tokens < new.num_tokens:
        new.num_computed_tokens = min(new.num_tokens, new.num_computed_tokens + 4)
        manager.publish(new)
        manager.check_integrity([new])
    return new


def test_a_prefix_is_found_by_the_blocks_of_its_last_window():
    manager = SlidingWindowPrefixCache(num_blocks=33, block_size=4, window=7)
    tokens = list(range(40))
    manager.free(compute(manager, tokens))
    found = manager.find(request([*tokens, 99]))
    assert [block == NULL_BLOCK for block in found] == [True] * 8 + [False] * 2
    second = request([*tokens, 99])
    assert manager.admit(second) == 40
    assert second.num_cached_tokens == 40
    manager.check_integrity([second])
    manager.free(second)
    manager.check_integrity([])


def test_a_prefix_without_its_last_window_is_not_found():
    manager = SlidingWindowPrefixCache(num_blocks=33, block_size=4, window=7)
    tokens = list(range(40))
    first = compute(manager, tokens)
    last = first.block_ids[-1]
    manager.free(first)
    del manager._block_of[manager._name_of.pop(last)]
    del manager._cached[last]
    manager._free.append(last)
    manager.check_integrity([])
    # Blocks 0 to 8 are published, so the longest prefix ends after block 8 and needs blocks 7 and 8.
    found = manager.find(request([*tokens, 99]))
    assert [block == NULL_BLOCK for block in found] == [True] * 7 + [False] * 2
    other = request([1000, *tokens[1:]])
    assert manager.find(other) == []


def test_a_short_prefix_is_found_without_a_whole_window():
    manager = SlidingWindowPrefixCache(num_blocks=33, block_size=4, window=100)
    manager.free(compute(manager, list(range(12))))
    found = manager.find(request([*range(12), 99]))
    assert len(found) == 3 and NULL_BLOCK not in found


@pytest.mark.parametrize(
    "name, compile",
    [("mistral", False), *((n, True) for n in ("mistral", "smollm3", "olmo2"))]
    + [("gemma2-no-caps", True), ("qwen2_moe-some-windows", True)],
)
def test_compiled_layers_give_the_same_tokens(tinies, name, compile):
    tiny = tinies(name)
    engine = tiny.engine(compile=compile)
    assert engine.generate([prompt_of(9, 1)], GREEDY)[0].token_ids == tiny.greedy(
        prompt_of(9, 1), 20
    )
    assert (type(engine.model.blocks[0]).__module__ == "lib.models.compiled") == compile


def test_a_sliding_window_in_every_dtype_of_the_cache(tinies):
    tiny = tinies("mistral")
    for attention in ("gather", "fused"):
        engine = tiny.engine(attention=attention, dtype="bfloat16")
        output = engine.generate([prompt_of(30, 1)], GREEDY)[0]
        assert len(output.token_ids) == 20 and engine.dtype == torch.bfloat16


def test_capped_scores_are_gathered_with_one_line(tinies):
    """The fused kernels do not cap scores."""
    with pytest.warns(UserWarning, match="falls back to 'gather'.*attn_logit_softcapping") as said:
        engine = tinies("gemma2").engine(attention="auto")
    assert len(said) == 1 and isinstance(engine.runner.attention, GatherAttention)
    # An attention with fused kernels refuses a cap that reaches it all the same.
    fused = CpuFusedAttention(engine.kv_cache)
    with pytest.raises(ValueError, match="softcap must be None for attention 'fused', got 2.0"):
        engine.model(Batch.of_prompts([[5, 9, 11]]), fused)


def test_fused_layers_are_refused_for_families_that_have_none(tinies):
    with pytest.raises(ValueError, match="linear 'fused' cannot be had: .* not for mistral"):
        tinies("mistral").engine(linear="fused")
