"""What goes wrong with one request stays with it: logits that are not finite, and an engine that two threads call."""

from __future__ import annotations

import threading

import pytest
import torch

from lib import SamplingParams
from tests.helpers import check_books, check_empty, drain, prompt_of

POISON = 60  # a token whose embedding is not finite
STAGES = {
    "none": dict(kv_cache="none"),
    "contiguous": dict(kv_cache="contiguous", max_num_seqs=4),
    "gather": dict(attention="gather", num_blocks=20, block_size=4, max_num_seqs=4),
    "fused": dict(attention="fused", num_blocks=20, block_size=4, max_num_seqs=4),
    "asynchronous": dict(async_scheduling=True, num_blocks=20, block_size=4, max_num_seqs=4),
}


def greedy(max_tokens: int, **changes) -> SamplingParams:
    return SamplingParams(
        **{"max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, **changes}
    )


def clean(tiny, length: int, seed: int, max_tokens: int) -> list[int]:
    """A prompt that neither holds nor is continued by the poison."""
    while True:
        prompt = prompt_of(length, seed)
        if POISON not in [*prompt, *tiny.greedy(prompt, max_tokens)]:
            return prompt
        seed += 100


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("budget", [2048, 7], ids=["whole", "chunks"])
def test_a_request_whose_logits_are_not_finite_ends_alone(llama, stage, bad, budget):
    engine = llama.engine(**{**STAGES[stage], "max_num_batched_tokens": budget})
    with torch.no_grad():
        engine.model.token_embedding.weight[POISON] = bad
    work = [(clean(llama, n, seed, 9), 9) for seed, n in enumerate((3, 14, 6, 9, 17, 2, 11, 5))]
    poisoned = [
        prompt_of(12, 1)[:9] + [POISON, 5, 6],
        [POISON],
        prompt_of(30, 2)[:3] + [POISON] * 20,
    ]
    ids = {}
    for i, (prompt, n) in enumerate(work):
        ids[engine.add_request(prompt, greedy(n, logprobs=1))] = (prompt, n)
        if i < len(poisoned):
            params = [greedy(9), SamplingParams(max_tokens=9), greedy(9, logprobs=2, n=2)][i]
            ids[engine.add_request(poisoned[i], params)] = (poisoned[i], None)
    done = drain(engine)
    for request_id, (prompt, n) in ids.items():
        output = done[request_id]
        if n is None:
            for completion in output.completions:
                assert completion.finish_reason == "error" and completion.token_ids == []
                assert "not finite" in completion.error
                assert completion.logprobs in (None, [])
            assert [c.finish_reason for c in output.chunks].count("error") >= 1
        else:
            assert output.error is None and output.token_ids == llama.greedy(prompt, n)
            assert all(torch.tensor(list(row.values())).isfinite().all() for row in output.logprobs)
    check_empty(engine)
    if engine.kv_cache is not None:
        assert engine.kv_cache.k.isfinite().all() and engine.kv_cache.v.isfinite().all()
    again = engine.generate([prompt for prompt, _ in work], [greedy(n) for _, n in work])
    assert [o.token_ids for o in again] == [llama.greedy(prompt, n) for prompt, n in work]
    assert engine.stats()["requests_finished"] == 8 + 4 + 8


def test_a_stream_whose_logits_become_not_finite_says_so_in_its_last_chunk(llama):
    engine = llama.engine()
    prompt = prompt_of(6, 3)
    expected = llama.greedy(prompt, 10)
    with torch.no_grad():
        engine.model.token_embedding.weight[expected[4]] = float("nan")
    chunks = list(engine.stream(prompt, greedy(10)))
    at = min(i for i, t in enumerate(expected) if t == expected[4])
    assert [t for c in chunks for t in c.token_ids] == expected[: at + 1]
    assert [c.finish_reason for c in chunks] == [None] * (at + 1) + ["error"]
    check_empty(engine)


def test_a_second_thread_is_refused_while_the_first_is_inside(llama):
    engine = llama.engine()
    inside, go = threading.Event(), threading.Event()
    run = engine.runner.run

    def slow(batch):
        inside.set()
        assert go.wait(20)
        return run(batch)

    engine.runner.run = slow
    outputs = []
    thread = threading.Thread(target=lambda: outputs.extend(engine.generate([[5, 6]], greedy(4))))
    thread.start()
    assert inside.wait(20)
    stream = engine.stream([5], greedy(2))
    for call in (
        engine.step,
        lambda: engine.add_request([5], greedy(2)),
        lambda: engine.generate([[5]], greedy(2)),
        lambda: engine.abort("request-0"),
        lambda: next(stream),
    ):
        with pytest.raises(RuntimeError, match="one thread at a time"):
            call()
    go.set()
    thread.join(20)
    assert outputs[0].token_ids == llama.greedy([5, 6], 4)
    check_empty(engine)
    assert engine.generate([[5, 6]], greedy(4))[0].token_ids == llama.greedy([5, 6], 4)


def test_threads_may_take_turns(llama):
    engine = llama.engine()
    outputs: list = []
    for _ in range(3):
        thread = threading.Thread(target=lambda: outputs.extend(engine.generate([[7]], greedy(3))))
        thread.start()
        thread.join()
    assert [o.token_ids for o in outputs] == [llama.greedy([7], 3)] * 3
    check_books(engine)
