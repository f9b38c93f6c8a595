"""Prefix caching in the engine: the oracle's tokens with every other part, and books that balance."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import SamplingParams
from lib.engine.cuda_graphs import GraphRunner, Rerun, ladder
from tests.helpers import VOCAB, Tiny, check_books, check_empty, prompt_of

GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_hits_change_no_token_and_are_counted_once(tiny: dict[str, Tiny], name: str):
    engine = tiny[name].engine(block_size=4)
    shared = prompt_of(17, 3)
    prompts = [shared, [*shared, 5, 6], shared[:16], [*shared[:9], 7, 8, 9, 10, 11]]
    cached = []
    for prompt in prompts:
        (output,) = engine.generate([prompt], GREEDY)
        assert output.token_ids == tiny[name].greedy(prompt, 6)
        cached.append(output.num_cached_tokens)
        check_books(engine)
    assert cached == [0, 16, 12, 8]
    stats = engine.stats()
    assert stats["prefix_hits"] == 36 and stats["prefix_queries"] == sum(map(len, prompts))
    assert stats["blocks_cached"] > 0
    assert stats["blocks_free"] + stats["blocks_cached"] == stats["blocks_total"]


def test_a_full_hit_computes_one_block_only(tiny: dict[str, Tiny]):
    engine = tiny["llama"].engine(block_size=4)
    prompt = prompt_of(16, 1)
    one = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
    engine.generate([prompt], one)
    before = engine.stats()["tokens_computed"]
    engine.generate([prompt], one)
    assert engine.stats()["tokens_computed"] - before == 4


def test_completions_of_one_prompt_share_its_blocks(tiny: dict[str, Tiny]):
    engine = tiny["llama"].engine(block_size=4)
    prompt = prompt_of(18, 2)
    params = SamplingParams(n=4, max_tokens=3, temperature=0, ignore_eos=True)
    (output,) = engine.generate([prompt], params)
    truth = tiny["llama"].greedy(prompt, 3)
    assert [c.token_ids for c in output.completions] == [truth] * 4
    # The prompt once, its partial last block and two outputs for the others.
    assert engine.stats()["tokens_computed"] == 18 + 3 * 2 + 4 * 2


def test_a_preempted_request_finds_its_own_blocks_and_is_counted_once(tiny: dict[str, Tiny]):
    llama = tiny["llama"]
    engine = llama.engine(block_size=2, num_blocks=1 + 14)
    prompts = [prompt_of(10, 1), prompt_of(10, 2)]
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    outputs = engine.generate(prompts, params)
    assert [o.token_ids for o in outputs] == [llama.greedy(p, 12) for p in prompts]
    stats = engine.stats()
    assert stats["preemptions"] > 0
    assert stats["prefix_queries"] == 20 and stats["prefix_hits"] == 0


def test_a_salt_in_the_engine(tiny: dict[str, Tiny]):
    engine = tiny["llama"].engine(block_size=4)
    prompt, found = prompt_of(17, 1), {}
    for salt in (None, "a", "b", "a", None):
        engine.add_request(prompt, GREEDY, "x", cache_salt=salt)
        while engine.has_unfinished():
            for output in engine.step():
                if output.finished:
                    found.setdefault(salt, []).append(output.num_cached_tokens)
    assert found == {None: [0, 16], "a": [0, 16], "b": [0]}
    with pytest.raises(ValueError, match="cache_salt must be a string, not empty, or None, got ''"):
        engine.add_request(prompt, GREEDY, cache_salt="")


def test_an_abort_in_the_middle_of_a_prompt_leaves_only_computed_blocks(tiny: dict[str, Tiny]):
    llama = tiny["llama"]
    engine = llama.engine(block_size=4, max_num_batched_tokens=6)
    prompt = prompt_of(20, 4)
    engine.add_request(prompt, GREEDY, "first")
    engine.step(), engine.step()
    engine.abort("first")
    (output,) = engine.generate([prompt], GREEDY)
    assert output.num_cached_tokens == 12 and output.token_ids == llama.greedy(prompt, 6)


def test_it_can_be_switched_off(tiny: dict[str, Tiny]):
    engine = tiny["llama"].engine(block_size=4, enable_prefix_caching=False)
    for _ in range(2):
        (output,) = engine.generate([prompt_of(17, 1)], GREEDY)
        assert output.num_cached_tokens in (0, None)
    assert engine.stats()["prefix_queries"] == engine.stats()["blocks_cached"] == 0


events = st.lists(
    st.tuples(
        st.integers(0, 3),  # which prefix
        st.integers(0, 20),  # how much of it
        st.integers(0, 6),  # own tokens after it
        st.integers(1, 6),  # tokens to generate
        st.sampled_from([1, 1, 2, 3]),  # n
        st.integers(0, 3),  # steps before the next event
        st.sampled_from([False, False, False, True]),  # abort the oldest
        st.sampled_from([None, None, "salt"]),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=60)
@given(
    events=events,
    name=st.sampled_from(["llama", "gpt2"]),
    block_size=st.sampled_from([1, 2, 3, 4, 16]),
    budget=st.sampled_from([1, 3, 7, 16, 64]),
    spare=st.integers(0, 12),
    max_num_seqs=st.integers(1, 5),
    scheduler=st.sampled_from(["continuous", "static"]),
)
def test_random_traffic(tiny, events, name, block_size, budget, spare, max_num_seqs, scheduler):
    """Shared prefixes, aborts, preemptions, evictions: the oracle's tokens, and books that balance."""
    model = tiny[name]
    engine = model.engine(
        block_size=block_size,
        num_blocks=1 + -(-32 // block_size) + spare,
        max_num_batched_tokens=budget,
        max_num_seqs=max_num_seqs,
        max_model_len=32,
        scheduler=scheduler,
    )
    asked: dict[str, tuple[list[int], int]] = {}
    done: dict[str, object] = {}

    def step() -> None:
        for output in engine.step():
            if output.finished:
                done[output.request_id] = output
        engine.manager.check_integrity()

    for i, (prefix, length, own, new, n, steps, abort, salt) in enumerate(events):
        tail = [(7 * i + j) % (VOCAB - 3) + 3 for j in range(own)]
        prompt = [*prompt_of(20, prefix)[:length], *tail] or [3]
        asked[f"{i}"] = prompt, new
        params = SamplingParams(max_tokens=new, n=n, temperature=0, ignore_eos=True)
        engine.add_request(prompt, params, f"{i}", cache_salt=salt)
        for _ in range(steps):
            step()
        running = [r for r in asked if r not in done]
        if abort and running:
            done[running[0]] = engine.abort(running[0])
            engine.manager.check_integrity()
    for _ in range(3000):
        if not engine.has_unfinished():
            break
        step()
    check_empty(engine)
    for request_id, (prompt, new) in asked.items():
        try:
            truth = model.greedy(prompt, new)
        except AssertionError:
            continue  # a near-tie: no promise about this prompt
        for completion in done[request_id].completions:
            assert completion.token_ids == truth[: len(completion.token_ids)]
            assert completion.finish_reason == "abort" or completion.token_ids == truth
    stats = engine.stats()
    assert 0 <= stats["prefix_hits"] <= stats["prefix_queries"]


# Regressions.


def test_blocks_without_an_owner_are_found_while_the_pool_is_full(tiny: dict[str, Tiny]):
    llama = tiny["llama"]
    engine = llama.engine(block_size=4, num_blocks=1 + 8, max_num_seqs=1)
    prompt = prompt_of(24, 1)
    engine.generate([prompt], GREEDY)  # 24 + 5 stored tokens: seven full blocks and a partial one
    engine.generate([prompt_of(3, 9)], SamplingParams(max_tokens=1, temperature=0))
    assert engine.stats()["blocks_free"] == 1  # the pool is full but for one block
    (output,) = engine.generate([prompt], GREEDY)
    assert output.num_cached_tokens == 20 and output.token_ids == llama.greedy(prompt, 6)
    assert engine.stats()["evictions"] > 0
    check_empty(engine)


def test_preempted_while_sharing(tiny: dict[str, Tiny]):
    llama = tiny["llama"]
    engine = llama.engine(block_size=2, num_blocks=1 + 14)
    prompts = [[*prompt_of(10, 1), 5], [*prompt_of(10, 1), 6]]
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    ids = [engine.add_request(prompt, params) for prompt in prompts]
    done, shared = {}, 0
    while engine.has_unfinished():
        done |= {o.request_id: o.token_ids for o in engine.step() if o.finished}
        check_books(engine)
        shared = max(shared, *engine.manager.ref_counts)
    assert shared == 2 and engine.stats()["preemptions"] > 0
    assert engine.stats()["prefix_hits"] == 10 and engine.stats()["prefix_queries"] == 22
    assert [done[i] for i in ids] == [llama.greedy(prompt, 12) for prompt in prompts]


def test_equal_blocks_in_different_places(tiny: dict[str, Tiny]):
    llama = tiny["llama"]
    engine = llama.engine(block_size=4)
    block = prompt_of(4, 3)
    for prompt in (block * 3 + [7], block * 2 + [8], [9] + block * 3):
        (output,) = engine.generate([prompt], GREEDY)
        assert output.token_ids == llama.greedy(prompt, 6)
    assert engine.stats()["prefix_hits"] == 8  # the second prompt's; the third is shifted


def test_a_failed_step_publishes_nothing(tiny: dict[str, Tiny]):
    llama = tiny["llama"]
    engine = llama.engine(block_size=4)
    prompt, run = prompt_of(17, 1), engine.runner.run

    def fail(batch):
        run(batch)
        engine.kv_cache.k.fill_(float("nan"))
        raise RuntimeError("in the middle of a step")

    engine.runner.run = fail
    engine.add_request(prompt, GREEDY, "victim")
    with pytest.raises(RuntimeError, match="in the middle of a step"):
        engine.step()
    engine.abort("victim")
    engine.runner.run = run
    engine.kv_cache.k.zero_()
    check_empty(engine)
    assert engine.stats()["blocks_cached"] == 0
    (output,) = engine.generate([prompt], GREEDY)
    assert output.num_cached_tokens == 0 and output.token_ids == llama.greedy(prompt, 6)


@pytest.mark.parametrize("budget, published", [(64, 0), (4, 2)], ids=["whole", "chunks"])
def test_what_a_failed_request_computed_is_not_published(tiny, budget, published):
    """A request whose logits are not finite ends with an error; other prompts share its first blocks."""
    llama, poison = tiny["llama"], VOCAB - 1
    engine = llama.engine(block_size=4, max_num_batched_tokens=budget)
    with torch.no_grad():
        engine.model.token_embedding.weight[poison] = float("nan")
    start = [token for token in prompt_of(14, 1) if token != poison][:9]
    (output,) = engine.generate([[*start, poison, 5, 6, 7]], GREEDY)
    assert output.finish_reason == "error"
    assert engine.stats()["blocks_cached"] == published  # the chunks before the bad one
    check_empty(engine)
    three = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)
    (output,) = engine.generate([[*start, 9]], three)
    assert output.num_cached_tokens == published * 4
    assert output.token_ids == llama.greedy([*start, 9], 3)


def test_salts_of_generate_stream_and_chat(tiny: dict[str, Tiny]):
    engine, prompt = tiny["llama"].engine(block_size=4), prompt_of(17, 1)
    engine.generate([prompt], GREEDY, cache_salt="a")
    list(engine.stream(prompt, GREEDY, cache_salt="b"))
    assert engine.stats()["prefix_hits"] == 0
    list(engine.stream(prompt, GREEDY, cache_salt="a"))
    assert engine.stats()["prefix_hits"] == 16
    (output,) = engine.generate([prompt], GREEDY, cache_salt="b")
    assert output.num_cached_tokens == 16
    with pytest.raises(ValueError, match="cache_salt must be a string, not empty, or None, got 3"):
        engine.generate([prompt], GREEDY, cache_salt=3)
    assert not engine.has_unfinished()


def test_a_reset_forgets(tiny: dict[str, Tiny]):
    engine, prompt = tiny["llama"].engine(block_size=4), prompt_of(17, 1)
    for expected in (0, 16):
        assert engine.generate([prompt], GREEDY)[0].num_cached_tokens == expected
    engine.reset_prefix_cache()
    assert engine.stats()["blocks_cached"] == 0
    assert engine.generate([prompt], GREEDY)[0].num_cached_tokens == 0


# What is promised: blocks that are found are the same memory, so their K and V are equal to the bit. The rest of the prompt
# is computed in a shorter chunk, for which a kernel may add up in another order: logits are equal up to rounding, and tokens
# are equal where the best logit leads by more than that.


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_logits_after_a_hit_are_equal_up_to_rounding(tiny: dict[str, Tiny], name: str):
    engine = tiny[name].engine(block_size=4)
    params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True, logprobs=5)
    for length in (5, 16, 17, 31):
        prompt = prompt_of(length, length)
        cold, warm = (engine.generate([prompt], params)[0] for _ in range(2))
        assert cold.num_cached_tokens == 0 and warm.num_cached_tokens == (length - 1) // 4 * 4
        (before,), (after,) = cold.logprobs, warm.logprobs
        assert before.keys() == after.keys()
        for token_id in before:
            assert after[token_id] == pytest.approx(before[token_id], abs=1e-4)


# With the other parts of the engine.


PARTS = [
    {},
    {"max_num_batched_tokens": 7},
    {"scheduler": "static"},
    {"scheduler": "static", "max_num_batched_tokens": 7},
    {"num_blocks": 1 + 14, "max_num_seqs": 5},
]
FUSED = [
    {"attention": "fused", "block_size": 16, "num_blocks": 24},
    {"attention": "fused", "block_size": 16, "max_num_batched_tokens": 7},
]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "options, recorded",
    # The CPU's stand-in for recorded steps reads the cache by gather: see test_cuda_graphs.
    [(o, r) for o in PARTS for r in (False, True)] + [(o, False) for o in FUSED],
    ids=str,
)
def test_with_the_other_parts(tiny: dict[str, Tiny], name: str, options: dict, recorded: bool):
    """Chunks, the static scheduler, preemption, fused kernels, and decode steps that are recorded."""
    if options in FUSED:
        pytest.importorskip("numba")
    engine = tiny[name].engine(**{"block_size": 4, **options})
    if recorded:
        size = engine.options.block_size
        most = -(-engine.max_model_len // size)
        sizes = ladder(engine.options.max_num_seqs)
        engine.runner = GraphRunner(engine.runner, sizes, size, most, torch.device("cpu"), Rerun())
    shared = prompt_of(21, 5)
    prompts = [[*shared[:cut], *prompt_of(own, own)] for cut in (21, 16, 20, 7) for own in (1, 5)]
    for _ in range(2):
        outputs = engine.generate(prompts, GREEDY)
        assert [o.token_ids for o in outputs] == [tiny[name].greedy(p, 6) for p in prompts]
        check_empty(engine)
    stats = engine.stats()
    assert 0 < stats["prefix_hits"] < stats["prefix_queries"]
    if recorded:
        assert engine.runner.num_replayed > 0
    if options.get("num_blocks") == 1 + 14:
        assert stats["evictions"] > 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_with_cuda_graphs(tiny: dict[str, Tiny], name: str):
    engine = tiny[name].engine(
        device="cuda", dtype="float32", attention="fused", cuda_graphs=True, num_blocks=65
    )
    prompts = [[*prompt_of(40, 5), *prompt_of(own, own)] for own in (1, 5, 17)]
    for _ in range(2):
        outputs = engine.generate(prompts, GREEDY)
        assert [o.token_ids for o in outputs] == [tiny[name].greedy(p, 6) for p in prompts]
    assert engine.stats()["prefix_hits"] > 0 and engine.runner.num_replayed > 0
    check_empty(engine)


# Ten thousand events.

CASES = [
    {"block_size": 1, "num_blocks": 1 + 40, "max_num_batched_tokens": 7},
    {"block_size": 2, "num_blocks": 1 + 20},
    {"block_size": 3, "num_blocks": 1 + 16, "max_num_batched_tokens": 16},
    {"block_size": 4, "num_blocks": 1 + 11, "max_num_batched_tokens": 5},
    {"block_size": 4, "num_blocks": 1 + 14, "scheduler": "static"},
    {"block_size": 16, "num_blocks": 1 + 6, "max_num_batched_tokens": 24},
]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("options", CASES, ids=lambda o: f"blocks of {o['block_size']}, {len(o)}")
def test_long_random_traffic(tiny: dict[str, Tiny], name: str, options: dict):
    """850 events per case (arrivals, aborts, preemptions, evictions), 10,200 over all cases."""
    model, rng = tiny[name], random.Random(f"{name} {options}")
    engine = model.engine(**options, max_num_seqs=5, max_model_len=32)
    asked: dict[str, tuple[list[int], int]] = {}
    aborts = 0

    def check(output) -> None:
        prompt, new = asked.pop(output.request_id)
        try:
            truth = model.greedy(prompt, new)
        except AssertionError:
            return  # a near-tie: no promise about this prompt
        for completion in output.completions:
            assert completion.token_ids == truth[: len(completion.token_ids)]
            assert completion.finish_reason == "abort" or completion.token_ids == truth

    def events() -> int:
        stats = engine.stats()
        return arrivals + aborts + stats["preemptions"] + stats["evictions"]

    arrivals = 0
    while events() < 850 or engine.has_unfinished():
        for _ in range(rng.choice((0, 1, 2)) if events() < 850 else 0):
            # Few different prompts, so that the oracle's answers are computed once.
            prompt = prompt_of(20, rng.randrange(4))[: rng.choice((0, 3, 8, 9, 16, 20))]
            prompt += [rng.randrange(3, 6)] * rng.randint(0 if prompt else 1, 3)
            new, n = rng.randint(1, 8), rng.choice((1, 1, 1, 2, 3))
            params = SamplingParams(max_tokens=new, n=n, temperature=0, ignore_eos=True)
            salt = rng.choice((None, None, None, "salt"))
            asked[engine.add_request(prompt, params, cache_salt=salt)] = prompt, new
            arrivals += 1
        if asked and rng.random() < 0.05:
            check(engine.abort(rng.choice(list(asked))))
            aborts += 1
        for output in engine.step():
            if output.finished:
                check(output)
        check_books(engine)
    check_empty(engine)
    stats = engine.stats()
    assert not asked and events() >= 850
    assert min(aborts, stats["evictions"], stats["prefix_hits"]) > 0
