"""Workloads are data: the same on every machine. A trace counts what an engine really did."""

import pytest

from lib.bench.measure.engine_trace import Trace, continuous_steps, static_steps, trace
from lib.bench.workloads import (
    QUESTIONS,
    Workload,
    chat,
    equal_length,
    fixed,
    log_normal,
    random_prompts,
    uniform,
    variable_length,
)
from lib.engine.llm import LLM

PINNED_OUTPUTS = [96, 12, 27, 16, 14, 45, 9, 15]
PINNED_PROMPTS = [67, 61, 24, 56, 23, 55, 96, 36]


def test_same_seed_same_workload_and_other_seed_another():
    assert variable_length(1000) == variable_length(1000)
    assert variable_length(1000, seed=2) != variable_length(1000, seed=3)
    # Pinned: a record made here and one made elsewhere must speak of the same requests.
    assert variable_length(1000).max_tokens[:8] == PINNED_OUTPUTS
    assert [len(p) for p in variable_length(1000).prompts[:8]] == PINNED_PROMPTS


def test_variable_lengths_are_what_the_name_says():
    samples = [variable_length(1000, seed=seed) for seed in range(50)]
    outputs = [n for w in samples for n in w.max_tokens]
    prompts = [len(p) for w in samples for p in w.prompts]
    assert {len(w) for w in samples} == {32}
    assert 16 == min(prompts) and max(prompts) == 96
    assert 1 <= min(outputs) and max(outputs) == 96
    assert 29 < sum(outputs) / len(outputs) < 35
    assert sum(n > 64 for n in outputs) < 0.2 * len(outputs) < sum(n < 16 for n in outputs)


def test_lengths():
    assert fixed(3, 50) == [50, 50, 50]
    assert set(uniform(500, 3, 5, seed=0)) == {3, 4, 5}
    assert log_normal(4, 20.0, 0.0, 1, 96, seed=0) == [20] * 4
    prompts = random_prompts([1, 5, 9], 7, seed=0)
    assert [len(p) for p in prompts] == [1, 5, 9] and all(0 <= t < 7 for p in prompts for t in p)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: fixed(0, 5), "n must be >= 1, got 0"),
        (lambda: fixed(1, 0), "length must be >= 1, got 0"),
        (lambda: uniform(1, 5, 4, seed=0), "low and high must be 1 <= low <= high, got 5 and 4"),
        (lambda: log_normal(1, 0, 1, 1, 9, seed=0), "median must be > 0"),
        (lambda: random_prompts([0], 9, seed=0), "lengths must be >= 1, got 0"),
        (lambda: Workload("w", [[1]], [1, 2]), "max_tokens must have one entry a prompt"),
        (lambda: chat(None, 0, 8), "n must be >= 1 and <= 24"),
        (lambda: chat(None, 99, 8), "n must be >= 1 and <= 24"),
    ],
)
def test_errors_name_the_field(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_chat_asks_each_question_once(llama):
    class Tokenizer:
        chat_template = "yes"

        def apply_chat_template(self, messages, **_):
            return messages[0]["content"]

        def encode(self, text, **_):
            return list(text.encode())

    workload = chat(Tokenizer(), len(QUESTIONS), 8)
    assert len({bytes(p) for p in workload.prompts}) == len(QUESTIONS) == 24
    assert not workload.ignore_eos and workload.params[0].max_tokens == 8


def engine(llama, **options) -> LLM:
    return LLM(
        str(llama.folder),
        device="cpu",
        dtype="float32",
        **{"kv_cache": "contiguous", "max_num_seqs": 4, "max_model_len": 200, **options},
    )


@pytest.mark.parametrize(
    "scheduler, predict", [("static", static_steps), ("continuous", continuous_steps)]
)
@pytest.mark.parametrize("slots", [1, 4, 5])
def test_a_trace_takes_the_predicted_steps(llama, scheduler, predict, slots):
    workload = variable_length(61, n=13)
    run = trace(engine(llama, scheduler=scheduler, max_num_seqs=slots), workload)
    assert len(run.steps) == predict(workload.max_tokens, slots)
    assert [len(o.token_ids) for o in run.outputs] == workload.max_tokens
    assert run.idle_slot_steps == run.slot_steps - sum(workload.max_tokens)
    assert all(max(step.slots.values()) < slots for step in run.steps)
    assert all(len(set(step.slots.values())) == len(step.slots) for step in run.steps)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_batched_tokens": 7},
        {"scheduler": "static", "max_num_batched_tokens": 7},
        {"kv_cache": "paged", "block_size": 8, "num_blocks": 26},
    ],
)
def test_a_trace_counts_each_token_that_the_engine_computed(llama, options):
    llm, workload = engine(llama, **options), variable_length(61, n=13)
    run = trace(llm, workload)
    stats = llm.stats()
    assert run.computed_tokens == stats["tokens_computed"] and len(run.steps) == stats["steps"]
    if stats["preemptions"] == 0:
        assert run.computed_tokens == sum(
            len(p) + n - 1 for p, n in zip(workload.prompts, workload.max_tokens)
        )
    if budget := options.get("max_num_batched_tokens"):
        assert max(sum(step.tokens.values()) for step in run.steps) == budget
    assert run.output_tokens == sum(workload.max_tokens)
    assert [len(run.gaps(i)) for i in range(len(workload))] == [n - 1 for n in workload.max_tokens]
    assert all(0 < seconds <= run.seconds for seconds in run.ttft)


def test_requests_arrive_when_they_are_told_to(llama):
    workload = Workload("w", [[1, 2]] * 3, [4, 4, 2])
    run = trace(engine(llama), workload, arrivals=[0, 2, 50])
    assert [sorted(step.tokens) for step in run.steps[:4]] == [[0], [0], [0, 1], [0, 1]]
    assert len(run.steps) == 8  # nobody waits for step 50 in an empty engine
    with pytest.raises(ValueError, match="arrivals must be one step a request, ascending"):
        trace(engine(llama), workload, arrivals=[2, 0, 0])


def test_a_busy_engine_is_refused(llama):
    llm = engine(llama)
    llm.add_request([1, 2, 3])
    with pytest.raises(ValueError, match="no unfinished requests"):
        trace(llm, equal_length(61, n=2))


def test_equal_lengths_leave_nothing_to_gain():
    lengths = equal_length(61).max_tokens
    for slots in range(1, 25):
        assert static_steps(lengths, slots) == continuous_steps(lengths, slots)


def test_step_counts_by_hand():
    assert static_steps([5, 1, 1, 4], 2) == 5 + 4
    assert continuous_steps([5, 1, 1, 4], 2) == 6
    assert Trace(2, [], []).slot_steps == 0
