"""Workloads are data: the same on every machine."""

import pytest

from lib.bench.workloads import (
    QUESTIONS,
    Workload,
    chat,
    fixed,
    log_normal,
    random_prompts,
    uniform,
    variable_length,
)

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
        (lambda: Workload("w", [[1]], [1, 2]), "max_tokens must have one entry per prompt"),
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
