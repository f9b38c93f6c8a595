"""Random traffic on engines that draft with a model: the oracle's tokens whatever the drafts, and books that balance."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import SamplingParams
from lib.cache.block_manager import BlockManager
from lib.models.packed import PackedLinear
from tests.engine.test_engine_properties import jobs, run
from tests.engine.test_interrupts import run as run_interrupted
from tests.engine.test_structured_outputs import KINDS as STRUCTURED
from tests.engine.test_structured_outputs import bytes_model, valid  # noqa: F401
from tests.helpers import (
    VOCAB,
    Tiny,
    check_empty,
    drain,
    gpt2_checkpoint,
    llama_checkpoint,
    prompt_of,
)
from tests.models.quantized.test_gptq_awq import checkpoints


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The folder of a smaller random model with the same vocabulary: its drafts are nearly all wrong."""
    folder = tmp_path_factory.mktemp("other")
    return llama_checkpoint(folder, seed=9, hidden_size=24, num_hidden_layers=1)


@pytest.fixture(scope="module")
def drafting(tiny, other):
    """A function: the speculative_config of a kind of drafting for a model."""
    folders = {"another": other}

    def config(kind: str, name: str, k: int = 4, **options) -> dict:
        common = {"num_speculative_tokens": k, "adaptive": False, **options}
        if kind == "early_exit":
            return {"method": "early_exit", "draft_layers": 1, **common}
        folder = folders.get(kind, tiny[name].folder)
        return {"method": "draft_model", "model": folder, **common}

    return config


KINDS = ("early_exit", "another", "itself")
traffic = dict(
    work=jobs,
    kind=st.sampled_from(KINDS),
    name=st.sampled_from(["llama", "gpt2"]),
    k=st.integers(1, 6),
    method=st.sampled_from(["greedy", "probabilistic"]),
    scheduler=st.sampled_from(["continuous", "static"]),
    max_num_seqs=st.integers(1, 5),
    budget=st.sampled_from([1, 2, 3, 5, 8, 16, 40, 2048]),
)


@settings(max_examples=40)
@given(
    **traffic,
    block_size=st.sampled_from([1, 2, 4, 16]),
    spare=st.integers(0, 6),
    prefixes=st.booleans(),
    attention=st.sampled_from(["gather", "gather", "gather", "fused"]),
)
def test_paged(
    tiny, drafting, work, kind, name, k, method, scheduler, max_num_seqs, budget, block_size, spare,
    prefixes, attention,
):  # fmt: skip
    longest = max(job.prompt + job.max_tokens for job in work)
    run(
        tiny[name],
        work,
        speculative_config=drafting(kind, name, k, draft_sample_method=method),
        scheduler=scheduler,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        block_size=block_size,
        num_blocks=-(-longest // block_size) + 1 + spare,
        enable_prefix_caching=prefixes,
        attention=attention,
    )


@settings(max_examples=20)
@given(
    prompts=st.lists(st.tuples(st.integers(1, 24), st.integers(0, 5)), min_size=1, max_size=7),
    kind=st.sampled_from(KINDS),
    name=st.sampled_from(["llama", "gpt2"]),
    k=st.integers(1, 6),
    params=st.sampled_from([
        dict(), dict(temperature=0.3), dict(top_p=0.8), dict(top_k=5, n=2), dict(temperature=0),
        dict(presence_penalty=1.0, logprobs=1), dict(logit_bias={5: 4.0}, min_tokens=3),
    ]),
    max_num_seqs=st.integers(1, 5),
    budget=st.sampled_from([1, 3, 8, 40, 2048]),
    block_size=st.sampled_from([1, 2, 4]),
    spare=st.integers(0, 6),
)  # fmt: skip
def test_books_balance_with_sampled_drafts(
    tiny, drafting, prompts, kind, name, k, params, max_num_seqs, budget, block_size, spare
):
    """At any temperature, in a pool that is barely large enough: whole answers, and no drafts that count twice."""
    longest = max(length for length, _ in prompts) + 12
    engine = tiny[name].engine(
        speculative_config=drafting(kind, name, k, draft_sample_method="probabilistic"),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        block_size=block_size,
        num_blocks=-(-longest // block_size) + 1 + spare,
    )
    sampling = SamplingParams(max_tokens=12, seed=1, ignore_eos=True, **params)
    for length, seed in prompts:
        engine.add_request(prompt_of(length, seed), sampling)
    outputs = drain(engine)
    assert len(outputs) == len(prompts)
    for output in outputs.values():
        for completion in output.completions:
            assert len(completion.token_ids) == 12 and completion.finish_reason == "length"
            if completion.logprobs is not None:
                assert [list(row)[0] for row in completion.logprobs] == completion.token_ids
    stats = engine.stats()
    assert sum(stats["accepted_by_position"]) == stats["accepted_tokens"] <= stats["draft_tokens"]
    check_empty(engine)


@settings(max_examples=15)
@given(**traffic, spare=st.integers(0, 20))
def test_contiguous(
    tiny, drafting, work, kind, name, k, method, scheduler, max_num_seqs, budget, spare
):
    run(
        tiny[name],
        work,
        speculative_config=drafting(kind, name, k, draft_sample_method=method),
        kv_cache="contiguous",
        scheduler=scheduler,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        max_model_len=max(job.prompt + job.max_tokens for job in work) + spare,
    )


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("kv_cache", ["paged", "contiguous"])
def test_a_model_that_drafts_for_itself_is_always_right(tiny, drafting, name, kv_cache):
    """All drafts are accepted, so a step gives each request k + 1 tokens."""
    prompts = [prompt_of(4 + 3 * i, i) for i in range(4)]
    config = drafting("itself", name, 4)
    engine = tiny[name].engine(speculative_config=config, kv_cache=kv_cache)
    greedy = SamplingParams(max_tokens=21, temperature=0, ignore_eos=True)
    outputs = engine.generate(prompts, greedy)
    assert [o.token_ids for o in outputs] == [tiny[name].greedy(p, 21) for p in prompts]
    stats = engine.stats()
    # The step that computes the prompts drafts, too: 4 * 5 tokens, and one in the last step.
    assert stats["draft_tokens"] == stats["accepted_tokens"] == 4 * 16
    assert stats["accepted_by_position"] == [16] * 4 and stats["steps"] == 5
    assert stats["draft_kv_cache_bytes"] == stats["kv_cache_bytes"]
    probabilistic = drafting("itself", name, 4, draft_sample_method="probabilistic")
    engine = tiny[name].engine(speculative_config=probabilistic, kv_cache=kv_cache)
    for params in (dict(), dict(top_p=0.8, presence_penalty=0.7), dict(top_k=4, min_p=0.02)):
        engine.generate(prompts, SamplingParams(max_tokens=21, seed=1, ignore_eos=True, **params))
    stats = engine.stats()
    # p and q are computed by passes of different shapes: they may differ in their last bits.
    assert stats["accepted_tokens"] >= 0.99 * stats["draft_tokens"] > 100


@pytest.mark.parametrize("params", [
    dict(temperature=1.3), dict(temperature=0.8, top_p=0.7), dict(top_k=5, min_p=0.05),
    dict(temperature=0.9, repetition_penalty=1.4, presence_penalty=0.5, frequency_penalty=0.3),
    dict(logit_bias={7: 3.0}, min_tokens=6), dict(temperature=0.7, n=3),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_seeded_text_is_the_same_with_greedy_drafts(tiny, drafting, kind, params):
    llama = tiny["llama"]
    prompts = [prompt_of(4 + i, i) for i in range(4)]
    sampling = [
        SamplingParams(max_tokens=14, seed=i, logprobs=2, ignore_eos=i > 1, **params)
        for i in range(4)
    ]
    plain = llama.engine().generate(prompts, sampling)
    engine = llama.engine(
        speculative_config=drafting(kind, "llama", 3), max_num_batched_tokens=40, num_blocks=129,
        block_size=4,
    )  # fmt: skip
    outputs = engine.generate(prompts, sampling)
    for ours, theirs in zip(outputs, plain, strict=True):
        for a, b in zip(ours.completions, theirs.completions, strict=True):
            assert (a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason)
            assert [list(row) for row in a.logprobs] == [list(row) for row in b.logprobs]
    assert engine.stats()["draft_tokens"] > 40
    check_empty(engine)


SAMPLED = {
    "method": "early_exit",
    "draft_layers": 1,
    "draft_sample_method": "probabilistic",
    "adaptive": False,
}


def generate_twice(tiny: Tiny, params: list[SamplingParams]):
    """The outputs of one prompt for each, from two engines with sampled drafts, which must be equal."""
    prompts = [prompt_of(5, i) for i in range(len(params))]
    runs = []
    for _ in range(2):
        engine = tiny.engine(speculative_config=SAMPLED)
        runs.append(engine.generate(prompts, params))
        stats = engine.stats()
        assert 0 < stats["accepted_tokens"] < stats["draft_tokens"]
        check_empty(engine)
    assert [o.token_ids for o in runs[0]] == [o.token_ids for o in runs[1]]
    return runs[0]


def test_sampled_drafts_go_with_all_else(texty):
    """Stop strings, bad words, allowed tokens, logprobs, greedy neighbours: what they promise holds."""
    outputs = generate_twice(texty, [
        SamplingParams(max_tokens=12, temperature=0, ignore_eos=True),
        SamplingParams(max_tokens=12, seed=3, stop="d", logprobs=3),
        SamplingParams(max_tokens=12, seed=4, bad_words=["a", "b c"], ignore_eos=True),
        SamplingParams(max_tokens=12, seed=5, allowed_token_ids=[5, 6, 7], ignore_eos=True),
    ])  # fmt: skip
    assert outputs[0].token_ids == texty.greedy(prompt_of(5, 0), 12)
    assert "d" not in outputs[1].text
    assert [list(row)[0] for row in outputs[1].logprobs] == outputs[1].token_ids
    words = outputs[2].text.split()
    assert "a" not in words and ("b", "c") not in zip(words, words[1:])
    assert set(outputs[3].token_ids) <= {5, 6, 7} and len(outputs[3].token_ids) == 12


def test_sampled_drafts_keep_to_structured_outputs(bytes_model):  # noqa: F811
    """Drafts are sampled from what the masks leave, and so are the tokens in the place of rejected ones."""
    outputs = generate_twice(bytes_model, [
        SamplingParams(max_tokens=60, seed=seed, structured_outputs=STRUCTURED[kind][0])
        for kind in STRUCTURED for seed in range(3)
    ])  # fmt: skip
    kinds = [kind for kind in STRUCTURED for _ in range(3)]
    ended = [(k, o.text) for k, o in zip(kinds, outputs) if o.finish_reason == "stop"]
    assert len(ended) > 6 and all(valid(kind, text) for kind, text in ended)


@pytest.mark.parametrize("kind", ["early_exit", "itself"])
def test_an_interrupt_at_any_line_changes_no_answer(texty, kind):
    config = {"adaptive": False, "num_speculative_tokens": 3}
    if kind == "early_exit":
        config |= {"method": "early_exit", "draft_layers": 1}
    else:
        config |= {"method": "draft_model", "model": texty.folder}
    options = dict(
        speculative_config=config, num_blocks=14, block_size=2, max_num_seqs=4,
        max_num_batched_tokens=12,
    )  # fmt: skip
    expected, lines, _ = run_interrupted(texty, options)
    plain, _, _ = run_interrupted(texty, {**options, "speculative_config": None})
    assert expected == plain
    drafting_lines = [at for at, (path, _) in enumerate(lines) if "/speculation/" in path]
    assert len({lines[at] for at in drafting_lines}) > 60
    rng = random.Random(kind)
    for at in rng.sample(drafting_lines, 20) + rng.sample(range(len(lines)), 10):
        assert run_interrupted(texty, options, at)[0] == expected, f"interrupted at {lines[at]}"


def test_a_full_draft_cache_leaves_requests_without_drafts(tiny, drafting):
    """The draft model's cache holds one of these sequences: the others get single tokens until it ends."""
    llama = tiny["llama"]
    engine = llama.engine(speculative_config=drafting("itself", "llama", 3), block_size=4)
    engine.drafter.proposer.manager = BlockManager(12, 4)
    prompts = [prompt_of(24, i) for i in range(4)]
    greedy = SamplingParams(max_tokens=9, temperature=0, ignore_eos=True)
    outputs = engine.generate(prompts, greedy)
    assert [o.token_ids for o in outputs] == [llama.greedy(p, 9) for p in prompts]
    drafted = [o.metrics.num_draft_tokens for o in outputs]
    assert drafted[0] == 6, "two steps of three drafts and one that has only one token to give"
    assert drafted == sorted(drafted, reverse=True) and drafted[1] < 6 > 2 * drafted[3]
    assert engine.stats()["accepted_tokens"] == sum(drafted)
    check_empty(engine)


def refusal(tiny: Tiny, config: dict, **options) -> str:
    with pytest.raises(ValueError) as error:
        tiny.engine(speculative_config=config, **options)
    return str(error.value)


def test_what_cannot_be_is_refused(tiny, tmp_path):
    llama = tiny["llama"]
    exit_early = {"method": "early_exit", "draft_layers": 1}
    said = refusal(llama, {**exit_early, "draft_layers": 2})
    assert "draft_layers must be >= 1 and < 2, the model's number of layers, got 2" in said
    assert "needs kv_cache 'contiguous' or 'paged'" in refusal(llama, exit_early, kv_cache="none")
    itself = {"method": "draft_model", "model": llama.folder}
    assert "needs kv_cache 'contiguous' or 'paged'" in refusal(llama, itself, kv_cache="none")
    small = gpt2_checkpoint(tmp_path / "small", vocab_size=VOCAB - 1)
    said = refusal(llama, {"method": "draft_model", "model": small})
    assert f"vocabulary of {VOCAB} tokens, got a model with {VOCAB - 1}" in said
    said = refusal(llama, {**itself, "draft_sample_method": "gumbel"})
    assert "draft_sample_method must be one of ['greedy', 'probabilistic'], got 'gumbel'" in said
    said = refusal(llama, {"method": "ngram", "draft_sample_method": "greedy"})
    assert "is an option of method 'early_exit' and 'draft_model'" in said
    assert "model must be a name or a path, got 3" in refusal(llama, {**itself, "model": 3})


def test_memory_is_shared_between_both_caches(tiny):
    """kv_cache_memory_bytes bounds both together, and both hold the same number of tokens."""
    llama = tiny["llama"]
    small = dict(kv_cache_memory_bytes=2**17, max_model_len=96)
    plain = llama.engine(**small).stats()
    itself = {"method": "draft_model", "model": llama.folder}
    both = llama.engine(**small, speculative_config=itself).stats()
    assert both["kv_cache_bytes"] == both["draft_kv_cache_bytes"]
    assert 0.9 * 2**17 < both["kv_cache_bytes"] + both["draft_kv_cache_bytes"] <= 2**17
    assert abs(both["blocks_total"] - plain["blocks_total"] / 2) <= 1
    assert plain["draft_kv_cache_bytes"] == 0


def test_prompt_logprobs_beside_drafts(tiny, drafting):
    """The step that computes a prompt's last tokens has rows for both."""
    llama = tiny["llama"]
    prompts = [prompt_of(9 + i, i) for i in range(3)]
    params = SamplingParams(max_tokens=9, temperature=0, ignore_eos=True, prompt_logprobs=1)
    plain = llama.engine().generate(prompts, params)
    engine = llama.engine(speculative_config=drafting("itself", "llama", 3))
    outputs = engine.generate(prompts, params)
    assert engine.stats()["steps"] == 3 and engine.stats()["draft_tokens"] == 3 * 6
    for ours, theirs in zip(outputs, plain, strict=True):
        assert ours.token_ids == theirs.token_ids
        ours, theirs = ours.prompt_logprobs, theirs.prompt_logprobs
        assert ours[0] is None is theirs[0] and len(ours) == len(theirs)
        for a, b in zip(ours[1:], theirs[1:]):
            assert a == pytest.approx(b, abs=1e-4)


@pytest.mark.parametrize("kind", ["early_exit", "itself"])
def test_packed_weights(tiny, drafting, kind):
    """The first layers are those of the packed model, and a draft model is packed as well."""
    llama = tiny["llama"]
    engine = llama.engine(speculative_config=drafting(kind, "llama"), linear="packed")
    prompts = [prompt_of(6 + i, i) for i in range(3)]
    outputs = engine.generate(
        prompts, SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    )
    assert [o.token_ids for o in outputs] == [llama.greedy(p, 12) for p in prompts]
    assert engine.stats()["packed_linears"] > 0
    layers = engine.drafter.proposer.loop.runner.model.blocks[0].modules()
    assert any(isinstance(layer, PackedLinear) for layer in layers)


def test_a_draft_model_with_quantised_weights(tmp_path):
    """An AWQ checkpoint drafts for a model with the weights that it means: nearly all drafts are right."""
    floats, packed = checkpoints(tmp_path, quant_method="awq", sym=False)
    target = Tiny(floats)
    config = {"method": "draft_model", "model": packed, "adaptive": False}
    engine = target.engine(speculative_config=config)
    prompts = [prompt_of(6 + i, i) for i in range(3)]
    outputs = engine.generate(
        prompts, SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    )
    assert [o.token_ids for o in outputs] == [target.greedy(p, 12) for p in prompts]
    assert engine.stats()["accepted_tokens"] > 0.9 * engine.stats()["draft_tokens"] > 20
