"""Log-probabilities of prompt tokens: transformers' values, whatever the chunks, the cache and the neighbours."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from lib import SamplingParams
from lib.engine import scheduler as scheduler_module
from tests.helpers import VOCAB, Tiny, check_books, prompt_of
from tests.scripted_drafts import Script

TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def truth(tiny: dict[str, Tiny]):
    """`truth(name, prompt)`: [T - 1, V] log-probabilities of the second and later tokens, by transformers."""
    models = {
        name: AutoModelForCausalLM.from_pretrained(t.folder, dtype=torch.float32).eval()
        for name, t in tiny.items()
    }

    @torch.inference_mode()
    def of(name: str, prompt: list[int]) -> torch.Tensor:
        return models[name](torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)

    return of


def params(number: int | None, **other) -> SamplingParams:
    defaults = {"max_tokens": 4, "temperature": 0.0, "ignore_eos": True}
    return SamplingParams(prompt_logprobs=number, **{**defaults, **other})


def check(found: list, prompt: list[int], expected: torch.Tensor, number: int) -> None:
    assert len(found) == len(prompt) and found[0] is None
    for token, row, values in zip(prompt[1:], found[1:], expected):
        assert next(iter(row)) == token and number <= len(row) <= number + 1
        for token_id, value in row.items():
            assert value == pytest.approx(values[token_id].item(), abs=TOLERANCE)
        best = values.topk(number).values.tolist()
        assert sorted(row.values(), reverse=True)[:number] == pytest.approx(best, abs=TOLERANCE)


ENGINES = [
    {"kv_cache": "none"},
    {"kv_cache": "contiguous", "max_num_batched_tokens": 7},
    {"enable_prefix_caching": False, "max_num_batched_tokens": 5, "scheduler": "static"},
    {"max_num_batched_tokens": 1},
    {"max_num_batched_tokens": 16, "block_size": 4},
    {"block_size": 8, "num_blocks": 12},
    {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}},
]


@pytest.mark.parametrize("options", ENGINES, ids=lambda o: ",".join(map(str, o.values())))
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_values_are_those_of_transformers(tiny, truth, name: str, options: dict) -> None:
    engine = tiny[name].engine(**options)
    prompts = [*(prompt_of(n, 3) for n in (1, 2, 9, 33, 16)), [5, 6, 7] * 4]
    numbers = [0, 3, None, 5, 1, 2]
    outputs = engine.generate(prompts, [params(number) for number in numbers])
    for prompt, number, output in zip(prompts, numbers, outputs):
        assert output.token_ids == tiny[name].answer(prompt, 4)
        if number is None:
            assert output.prompt_logprobs is None
        else:
            check(output.prompt_logprobs, prompt, truth(name, prompt), number)


def test_a_cached_prefix_is_not_read_where_its_logits_are_needed(tiny, truth) -> None:
    engine, prompt = tiny["llama"].engine(block_size=4), prompt_of(23, 1)
    engine.generate([prompt], params(None))
    (plain,) = engine.generate([prompt], params(None))
    (output,) = engine.generate([prompt], params(2))
    assert plain.num_cached_tokens == 20 and output.num_cached_tokens == 0
    check(output.prompt_logprobs, prompt, truth("llama", prompt), 2)
    assert output.token_ids == plain.token_ids


def test_n_completions_have_one_prompt(tiny, truth) -> None:
    engine, prompt = tiny["llama"].engine(block_size=4), prompt_of(23, 2)
    (output,) = engine.generate([prompt], params(1, n=3, temperature=1.0, seed=5))
    check(output.prompt_logprobs, prompt, truth("llama", prompt), 1)
    # The two others share the first one's blocks.
    assert engine.stats()["tokens_computed"] < 2 * len(prompt) + 3 * 4


def test_a_preempted_request_computes_no_value_twice(tiny, truth, monkeypatch) -> None:
    """Ten blocks for three sequences that grow to five each: the youngest is preempted."""
    rows = []
    original = scheduler_module.Scheduler._scheduled

    def spy(self, request, num_tokens):
        item = original(self, request, num_tokens)
        rows.append((request.request_id, item.num_prompt_rows))
        return item

    monkeypatch.setattr(scheduler_module.Scheduler, "_scheduled", spy)
    engine = tiny["llama"].engine(block_size=4, num_blocks=11, max_num_batched_tokens=6)
    prompts = [prompt_of(9, seed) for seed in range(3)]
    outputs = engine.generate(prompts, params(2, max_tokens=10))
    assert engine.stats()["preemptions"] > 0
    for prompt, output in zip(prompts, outputs):
        check(output.prompt_logprobs, prompt, truth("llama", prompt), 2)
        assert sum(n for i, n in rows if i == output.request_id) == len(prompt) - 1


def test_a_preemption_within_the_prompt_goes_on_where_it_was(tiny, truth) -> None:
    engine = tiny["llama"].engine(block_size=4, max_num_batched_tokens=5)
    prompt = prompt_of(22, 4)
    request_id = engine.add_request(prompt, params(2))
    engine.step()
    engine.step()
    (request,) = engine.scheduler.running
    known = list(request.prompt_logprobs)
    assert len(known) == 11
    engine.scheduler._preempt(request)
    while not (outputs := [o for o in engine.step() if o.finished]):
        check_books(engine)
        assert request.prompt_logprobs[:11] == known
    assert outputs[0].request_id == request_id
    check(outputs[0].prompt_logprobs, prompt, truth("llama", prompt), 2)


@pytest.mark.parametrize("where", ["put_prompt_logprobs", "finish", "put"])
@pytest.mark.parametrize("at", [1, 2, 3, 5, 8])
def test_an_interrupt_loses_no_value(tiny, truth, monkeypatch, where: str, at: int) -> None:
    from lib.core.request import Request

    engine, calls = tiny["llama"].engine(max_num_batched_tokens=4), 0
    original = getattr(Request, where)

    def interrupted(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(Request, where, interrupted)
    prompts = [prompt_of(13, 1), prompt_of(7, 2)]
    ids = [engine.add_request(p, params(3)) for p in prompts]
    finished = {}
    while engine.has_unfinished():
        try:
            finished.update({o.request_id: o for o in engine.step() if o.finished})
        except KeyboardInterrupt:
            continue
    for request_id, prompt in zip(ids, prompts):
        check(finished[request_id].prompt_logprobs, prompt, truth("llama", prompt), 3)
        assert finished[request_id].token_ids == tiny["llama"].answer(prompt, 4)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    numbers=st.lists(st.none() | st.integers(0, 4), min_size=5, max_size=5),
    budget=st.sampled_from([1, 3, 8, 40, 2048]),
    block_size=st.sampled_from([1, 4, 16]),
    rows=st.sampled_from([1, 2, 5, 512]),
    drafted=st.booleans(),
)
def test_random_traffic(tiny, truth, lengths, numbers, budget, block_size, rows, drafted) -> None:
    """Little room, any chunk size, drafts that are wrong at times: values and tokens are the same."""
    llama = tiny["llama"]
    num_blocks = -(-40 // block_size) + 4
    engine = llama.engine(
        max_num_batched_tokens=budget, block_size=block_size, num_blocks=num_blocks
    )
    prompts = [prompt_of(n, seed) for seed, n in enumerate(lengths)]
    largest, scheduler_module.MAX_PROMPT_ROWS = scheduler_module.MAX_PROMPT_ROWS, rows
    try:
        ids = [
            engine.add_request(p, params(n, max_tokens=6, logprobs=1))
            for p, n in zip(prompts, numbers)
        ]
        if drafted:
            truths = {i: llama.answer(p, 6) for i, p in zip(ids, prompts)}
            engine.drafter = Script(engine, truths)
        finished = {}
        while engine.has_unfinished():
            finished.update({o.request_id: o for o in engine.step() if o.finished})
            check_books(engine)
    finally:
        scheduler_module.MAX_PROMPT_ROWS = largest
    for request_id, prompt, number in zip(ids, prompts, numbers):
        output = finished[request_id]
        assert output.token_ids == llama.answer(prompt, 6)
        if number is None:
            assert output.prompt_logprobs is None
        else:
            check(output.prompt_logprobs, prompt, truth("llama", prompt), number)


def test_a_step_computes_a_bounded_number_of_rows(tiny, monkeypatch) -> None:
    monkeypatch.setattr(scheduler_module, "MAX_PROMPT_ROWS", 10)
    engine = tiny["llama"].engine(max_num_batched_tokens=2048)
    shapes, run = [], engine.runner.run

    def spy(batch):
        logits = run(batch)
        shapes.append(len(logits))
        return logits

    monkeypatch.setattr(engine.runner, "run", spy)
    engine.generate([prompt_of(60, s) for s in range(4)], params(1))
    assert 4 < max(shapes) <= 10 + 4


def test_logits_that_are_not_finite_fail_the_request_alone(tiny, monkeypatch) -> None:
    engine = tiny["llama"].engine(max_num_batched_tokens=8)
    run = engine.runner.run

    def broken(batch):
        logits = run(batch).clone()
        logits[batch.input_ids[batch.logits_indices] == 3] = float("nan")
        return logits

    monkeypatch.setattr(engine.runner, "run", broken)
    poisoned, clean = [5, 3, *[4] * 20], [6, 7, 8]
    bad, good = engine.generate([poisoned, clean], params(1, max_tokens=1))
    assert bad.finish_reason == "error" and bad.prompt_logprobs == [None]
    assert good.finish_reason == "length" and len(good.prompt_logprobs) == 3


@pytest.mark.parametrize("value", [-1, 21, 1.5, True, "1"])
def test_bad_values(value) -> None:
    with pytest.raises(ValueError, match="prompt_logprobs must be"):
        SamplingParams(prompt_logprobs=value)


def test_more_than_the_vocabulary_has(tiny) -> None:
    assert VOCAB > 20
    engine = tiny["llama"].engine()
    engine.config = type("Config", (), {"vocab_size": 7, "eos_token_ids": ()})()
    with pytest.raises(ValueError, match="prompt_logprobs must be <= 7"):
        engine.generate([[1, 2]], params(8))
