"""The copying tasks: four kinds in turn, and prompts that the model's own chat template makes."""

from __future__ import annotations

import pytest

from lib.bench.copying_tasks import TASKS, copying

KINDS = ("editing", "quoting", "code", "JSON")


class Tokenizer:
    """A tokenizer whose template is the text itself, one token per character."""

    chat_template = "set"
    added_tokens_decoder = {}

    def apply_chat_template(self, messages, **_):
        return messages[0]["content"]

    def encode(self, text, **_):
        return [ord(c) for c in text]


def test_each_four_tasks_are_one_of_each_kind():
    kinds = [kind for kind, _ in TASKS]
    assert kinds == [*KINDS, *KINDS]
    assert len({prompt for _, prompt in TASKS}) == len(TASKS)


def test_the_editing_tasks_have_something_to_edit():
    spelling, renaming = (prompt for kind, prompt in TASKS if kind == "editing")
    assert "vilage" in spelling and "village" not in spelling
    assert "lighthouse" in renaming and "tower" in renaming


def test_n_must_be_positive():
    with pytest.raises(ValueError, match="n must be >= 1, got 0"):
        copying(None, 0, 8)


def test_a_workload_repeats_the_tasks_from_the_first_one():
    work = copying(Tokenizer(), len(TASKS) + 1, 7)
    texts = ["".join(map(chr, prompt)) for prompt in work.prompts]
    assert texts == [*(prompt for _, prompt in TASKS), TASKS[0][1]]
    assert work.max_tokens == [7] * len(work) and not work.ignore_eos
