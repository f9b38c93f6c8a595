"""Every stage of the engine gives the tokens of the no-cache loop: the regression cases that engines are known for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lib import SamplingParams
from lib.engine.sampling import Sampler
from tests.helpers import Tiny, check_books, check_empty, drain, held_blocks, prompt_of

STAGES = [
    ("none", "continuous"),
    ("none", "static"),
    ("contiguous", "continuous"),
    ("contiguous", "static"),
    ("paged", "continuous"),
    ("paged", "static"),
]
# `Tiny.engine` reads the paged cache by 'gather'; the fused reads have tests of their own.
stages = pytest.mark.parametrize("kv_cache, scheduler", STAGES, ids=["-".join(s) for s in STAGES])
models = pytest.mark.parametrize("name", ["llama", "gpt2"])


def greedy(max_tokens: int, **changes) -> SamplingParams:
    return SamplingParams(
        **{"max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, **changes}
    )


def serve(engine, tiny: Tiny, work: list[tuple[list[int], int]]) -> dict:
    """Queue all of `work`, (prompt, max_tokens), run it dry, and compare every answer with the oracle."""
    ids = [engine.add_request(prompt, greedy(n)) for prompt, n in work]
    done = drain(engine)
    for request_id, (prompt, n) in zip(ids, work):
        assert done[request_id].token_ids == tiny.greedy(prompt, n)
        assert done[request_id].finish_reason == "length"
        assert done[request_id].prompt_token_ids == prompt
    check_empty(engine)
    return done


@models
@stages
def test_ragged_batches_equal_the_oracle(tiny, name, kv_cache, scheduler):
    engine = tiny[name].engine(kv_cache=kv_cache, scheduler=scheduler, max_num_seqs=4)
    serve(
        engine,
        tiny[name],
        [
            (prompt_of(n, seed), m)
            for seed, (n, m) in enumerate(
                [(1, 9), (17, 12), (5, 1), (33, 8), (16, 20), (2, 2), (40, 15)]
            )
        ],
    )


@models
@stages
@pytest.mark.parametrize("budget", [1, 3, 8])
def test_any_token_budget(tiny, name, kv_cache, scheduler, budget):
    engine = tiny[name].engine(
        kv_cache=kv_cache, scheduler=scheduler, max_num_seqs=3, max_num_batched_tokens=budget
    )
    serve(
        engine,
        tiny[name],
        [(prompt_of(n, seed), m) for seed, (n, m) in enumerate([(10, 5), (3, 7), (21, 4), (1, 3)])],
    )


@models
@pytest.mark.parametrize("block_size", [1, 2, 4, 16])
def test_prompts_of_whole_blocks(tiny, name, block_size):
    engine = tiny[name].engine(block_size=block_size, num_blocks=1 + 200 // block_size)
    lengths = [k * block_size + d for k in (1, 2, 4) for d in (-1, 0, 1) if k * block_size + d > 0]
    serve(engine, tiny[name], [(prompt_of(n, 3), 2 * block_size + 1) for n in lengths if n < 70])


@stages
def test_the_limit_exactly_and_one_above(llama, kv_cache, scheduler):
    engine = llama.engine(kv_cache=kv_cache, scheduler=scheduler, max_model_len=32, max_num_seqs=2)
    serve(engine, llama, [(prompt_of(24, 1), 8), (prompt_of(31, 1), 1), (prompt_of(1, 1), 31)])
    for prompt, n in ((24, 9), (32, 1), (1, 32)):
        with pytest.raises(
            ValueError,
            match=rf"prompt \({prompt} tokens\) \+ max_tokens \({n}\) must be <= 32 .*got 33",
        ):
            engine.add_request(prompt_of(prompt, 1), greedy(n))
    check_empty(engine)


def test_a_request_larger_than_the_pool_is_rejected_at_once(llama):
    engine = llama.engine(num_blocks=5, block_size=4)
    assert engine.max_model_len == 16
    with pytest.raises(ValueError, match="must be <= 16 tokens"):
        engine.add_request(prompt_of(10, 1), greedy(7))
    serve(engine, llama, [(prompt_of(10, 1), 6)])


@models
def test_a_pool_with_one_spare_block(tiny, name):
    """Two sequences of four blocks share a pool of five: one has to go back and start again."""
    engine = tiny[name].engine(num_blocks=6, block_size=4)
    done = serve(engine, tiny[name], [(prompt_of(6, 1), 10), (prompt_of(7, 2), 9)])
    assert engine.stats()["preemptions"] >= 1
    assert (
        sum(output.metrics.num_preemptions for output in done.values())
        == engine.stats()["preemptions"]
    )


@models
def test_preempted_twice(tiny, name):
    engine = tiny[name].engine(num_blocks=8, block_size=2, max_num_seqs=3)
    done = serve(
        engine, tiny[name], [(prompt_of(2, 1), 6), (prompt_of(3, 2), 11), (prompt_of(2, 3), 12)]
    )
    assert max(output.metrics.num_preemptions for output in done.values()) >= 2


@stages
def test_one_sequence_at_a_time(llama, kv_cache, scheduler):
    engine = llama.engine(kv_cache=kv_cache, scheduler=scheduler, max_num_seqs=1)
    done = serve(engine, llama, [(prompt_of(5, 1), 4), (prompt_of(6, 2), 5), (prompt_of(7, 3), 6)])
    finished = [output.metrics.finish_time for output in done.values()]
    assert finished == sorted(finished)


@stages
def test_the_same_prompt_twice(llama, kv_cache, scheduler):
    engine = llama.engine(kv_cache=kv_cache, scheduler=scheduler)
    serve(engine, llama, [(prompt_of(20, 1), 8)] * 3)


@stages
def test_several_completions(llama, kv_cache, scheduler):
    engine = llama.engine(kv_cache=kv_cache, scheduler=scheduler, max_num_seqs=2)
    prompt = prompt_of(9, 1)
    output = engine.generate([prompt], greedy(6, n=3))[0]
    assert [c.token_ids for c in output.completions] == [llama.greedy(prompt, 6)] * 3
    assert [c.index for c in output.completions] == [0, 1, 2]
    check_empty(engine)


@stages
def test_seeded_completions_differ_and_repeat_whatever_else_runs(llama, kv_cache, scheduler):
    params = SamplingParams(n=3, seed=7, temperature=1.5, max_tokens=12, ignore_eos=True)
    alone = llama.engine(kv_cache="none", max_num_seqs=1).generate([prompt_of(9, 1)], params)[0]
    expected = [c.token_ids for c in alone.completions]
    assert len({tuple(tokens) for tokens in expected}) == 3
    engine = llama.engine(
        kv_cache=kv_cache, scheduler=scheduler, max_num_seqs=4, max_num_batched_tokens=16
    )
    crowd = [greedy(9), params, SamplingParams(temperature=1, top_p=0.5, max_tokens=7, seed=1)]
    outputs = engine.generate([prompt_of(4, 2), prompt_of(9, 1), prompt_of(30, 3)], crowd)
    assert [c.token_ids for c in outputs[1].completions] == expected


@models
@stages
def test_stop_ids_end_a_sequence_and_free_its_room(tiny, name, kv_cache, scheduler):
    engine, prompt = tiny[name].engine(kv_cache=kv_cache, scheduler=scheduler), prompt_of(12, 1)
    tokens = tiny[name].greedy(prompt, 12)
    for stop in set(tokens[3:9]):
        output = engine.generate([prompt], greedy(12, stop_token_ids=[stop]))[0]
        assert output.token_ids == tokens[: tokens.index(stop) + 1]
        assert output.finish_reason == "stop"
    check_empty(engine)


def test_eos_ends_and_ignore_eos_does_not(llama, tmp_path):
    import json
    import shutil

    tokens = llama.greedy(prompt_of(12, 1), 12)
    shutil.copytree(llama.folder, tmp_path / "copy")
    (tmp_path / "copy" / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [tokens[4], 9999]})
    )
    engine = Tiny(tmp_path / "copy").engine()
    first = tokens.index(tokens[4]) + 1
    assert (
        engine.generate([prompt_of(12, 1)], greedy(12, ignore_eos=False))[0].token_ids
        == tokens[:first]
    )
    assert engine.generate([prompt_of(12, 1)], greedy(12))[0].token_ids == tokens
    held = engine.generate([prompt_of(12, 1)], greedy(12, ignore_eos=False, min_tokens=8))[0]
    assert tokens[4] not in held.token_ids[:7], (
        "an EOS id outside the vocabulary must not disturb min_tokens"
    )


# Abort, at each station of a request's way.


@stages
def test_abort_while_waiting(llama, kv_cache, scheduler):
    engine = llama.engine(kv_cache=kv_cache, scheduler=scheduler, max_num_seqs=1)
    first = engine.add_request(prompt_of(5, 1), greedy(4))
    second = engine.add_request(prompt_of(6, 2), greedy(4))
    engine.step()
    output = engine.abort(second)
    assert output.finish_reason == "abort" and output.token_ids == [] and output.finished
    assert engine.abort(second) is None and engine.abort("nobody") is None
    assert drain(engine)[first].token_ids == llama.greedy(prompt_of(5, 1), 4)
    check_empty(engine)


@pytest.mark.parametrize("kv_cache", ["contiguous", "paged"])
def test_abort_in_the_middle_of_a_chunked_prompt(llama, kv_cache):
    engine = llama.engine(kv_cache=kv_cache, max_num_batched_tokens=4)
    request_id = engine.add_request(prompt_of(30, 1), greedy(4))
    other = engine.add_request(prompt_of(5, 2), greedy(3))
    for _ in range(3):
        assert engine.step() == []
    assert held_blocks(engine)
    assert engine.abort(request_id).token_ids == []
    check_books(engine)
    assert drain(engine)[other].token_ids == llama.greedy(prompt_of(5, 2), 3)
    check_empty(engine)


def test_abort_while_preempted(llama):
    engine = llama.engine(num_blocks=6, block_size=4)
    engine.add_request(prompt_of(6, 1), greedy(10), "old")
    engine.add_request(prompt_of(7, 2), greedy(9), "young")
    while engine.stats()["preemptions"] == 0:
        engine.step()
    output = engine.abort("young")
    assert output.finish_reason == "abort" and output.metrics.num_preemptions == 1
    assert (
        output.token_ids == llama.greedy(prompt_of(7, 2), 9)[: len(output.token_ids)]
        and output.token_ids
    )
    assert drain(engine)["old"].token_ids == llama.greedy(prompt_of(6, 1), 10)
    check_empty(engine)


@stages
def test_abort_some_completions_of_a_prompt_aborts_all(llama, kv_cache, scheduler):
    engine = llama.engine(kv_cache=kv_cache, scheduler=scheduler, max_num_seqs=2)
    request_id = engine.add_request(prompt_of(5, 1), greedy(8, n=4))
    engine.step(), engine.step()
    output = engine.abort(request_id)
    assert [c.finish_reason for c in output.completions] == ["abort"] * 4
    check_empty(engine)


# Steps.


@pytest.mark.parametrize("kv_cache", ["contiguous", "paged"])
def test_running_sequences_keep_decoding_while_a_long_prompt_is_chunked(llama, kv_cache):
    engine = llama.engine(kv_cache=kv_cache, max_num_batched_tokens=8)
    engine.add_request(prompt_of(4, 1), greedy(20), "runs")
    engine.step()
    engine.add_request(prompt_of(50, 2), greedy(3), "long")
    progressed = []
    while "long" not in (latest := [output.request_id for output in engine.step()]):
        progressed.append(latest)
    assert len(progressed) >= 50 // 7 and all(ids == ["runs"] for ids in progressed)
    done = drain(engine)
    assert done["runs"].token_ids == llama.greedy(prompt_of(4, 1), 20)
    assert done["long"].token_ids == llama.greedy(prompt_of(50, 2), 3)


def test_more_requests_than_slots(llama):
    engine = llama.engine(kv_cache="contiguous", max_num_seqs=2)
    serve(engine, llama, [(prompt_of(4 + i, i), 3 + i % 5) for i in range(9)])


def test_holes_between_the_slots(llama, monkeypatch):
    """Slots 0 and 7 run on when the six between them are free: too thin for one rectangle, and still right."""
    from lib.attention.contiguous import ContiguousAttention

    rectangles = []
    whole = ContiguousAttention._rectangle
    monkeypatch.setattr(
        ContiguousAttention,
        "_rectangle",
        lambda self, *a: (rectangles.append(a[2].last - a[2].first), whole(self, *a))[1],
    )
    engine = llama.engine(kv_cache="contiguous", max_num_seqs=8)
    work = [(prompt_of(5 + i, i), 14 if i in (0, 7) else 2 + i % 3) for i in range(8)]
    serve(engine, llama, work)
    assert max(rectangles) == 8, "all eight were read together"
    assert engine.stats()["steps"] * 2 > len(rectangles), "two of eight slots were not"


def test_static_takes_whole_batches_into_an_empty_engine(llama):
    """Four prompts of ten tokens against a budget of eight: the batch is four all the same, and nobody joins it."""
    engine = llama.engine(scheduler="static", max_num_seqs=4, max_num_batched_tokens=8)
    for i in range(6):
        engine.add_request(prompt_of(10, i), greedy(2 + i), f"r{i}")
    engine.step()
    assert [r.request_id for r in engine.scheduler.running] == ["r0", "r1", "r2", "r3"]
    sizes, done = [], {}
    while engine.has_unfinished():
        done |= {output.request_id: output for output in engine.step() if output.finished}
        sizes.append(len(engine.scheduler.running))
    joined = [i for i in range(1, len(sizes)) if sizes[i] > sizes[i - 1]]
    assert len(joined) == 1 and sizes[joined[0] - 1] == 0, (
        f"someone joined a running batch: {sizes}"
    )
    assert all(done[f"r{i}"].token_ids == llama.greedy(prompt_of(10, i), 2 + i) for i in range(6))


def test_continuous_fills_a_slot_in_the_next_step(llama):
    engine = llama.engine(max_num_seqs=2)
    for i, n in enumerate((2, 9, 3)):
        engine.add_request(prompt_of(4, i), greedy(n), f"r{i}")
    engine.step(), engine.step()
    assert [r.request_id for r in engine.scheduler.running] == ["r1"]
    engine.step()
    assert [r.request_id for r in engine.scheduler.running] == ["r1", "r2"]


@pytest.mark.parametrize("kv_cache", ["contiguous", "paged"])
def test_what_others_left_in_the_cache_changes_nothing(llama, kv_cache):
    """Freed room keeps old values. Whatever finite values they are, masked positions count for exactly nothing.

    A limit: a NaN that a broken model left behind would spread, because 0 * NaN is NaN; so storage starts as zeros.
    """
    engine = llama.engine(kv_cache=kv_cache, max_num_seqs=4)
    assert not engine.kv_cache.k.any() and not engine.kv_cache.v.any()
    engine.kv_cache.k.uniform_(-1e3, 1e3)
    engine.kv_cache.v.fill_(1e4)
    serve(
        engine,
        llama,
        [
            (prompt_of(n, seed), m)
            for seed, (n, m) in enumerate([(1, 9), (17, 3), (5, 14), (33, 8), (6, 2)])
        ],
    )


@models
@pytest.mark.parametrize("kv_cache", ["none", "contiguous", "paged"])
def test_bfloat16_logits_stay_near_float32(tiny, name, kv_cache, monkeypatch):
    """Mean error below 2 % and largest below 15 % of the logits' spread, over a prompt and six forced tokens."""
    seen: dict[str, list[torch.Tensor]] = {"float32": [], "bfloat16": []}
    prompt, forced = prompt_of(20, 1), prompt_of(6, 2)
    for dtype, logits in seen.items():
        replay = iter(forced)

        def record(sampler, values, rows, logits=logits, replay=replay):
            logits.append(values.float())
            return SimpleNamespace(read=lambda: ([next(replay)], [None]))

        monkeypatch.setattr(Sampler, "choose", record)
        tiny[name].engine(kv_cache=kv_cache, dtype=dtype).generate([prompt], greedy(6))
    exact, rough = (torch.cat(logits) for logits in seen.values())
    error = (exact - rough).abs() / exact.std()
    assert 0 < error.mean() < 0.02 and error.max() < 0.15
