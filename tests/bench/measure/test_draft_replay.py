"""Acceptance counted from a finished text, by hand and against the expected tokens per step."""

from __future__ import annotations

import random

import pytest

from lib.bench.measure.draft_replay import batch_rows, replay
from lib.bench.measure.speculation_model import tokens_by_position

PROMPT, OUTPUT = [1, 2], [10, 11, 12, 13, 14, 15]


def scripted(drafts):
    """A proposer that drafts what `drafts` has for the number of tokens so far, and the number of times it was asked."""
    asked = []

    def propose(token_ids, most):
        asked.append((len(token_ids), most))
        return drafts.get(len(token_ids), [])

    return propose, asked


def test_by_hand():
    # After the first output token (3 known tokens): two right, one wrong. After 3 + 3: nothing drafted. Then the last.
    propose, asked = scripted({3: [11, 12, 99], 6: [], 7: [15]})
    counts = replay(PROMPT, OUTPUT, propose, 4)
    assert asked == [(3, 4), (6, 1)], (
        "the last token is never drafted, so no proposer is asked for it"
    )
    assert (counts.tokens, counts.rows) == (5, (4, 1, 1))
    assert counts.drafted == (1, 1, 1, 0)
    assert counts.tried == (1, 1, 1, 0) and counts.accepted == (1, 1, 0, 0)
    assert counts.by_position == [1.0, 1.0, 0.0, None]
    assert counts.tokens_per_step == pytest.approx(5 / 3)
    assert counts.drafts_per_step == 1 and counts.acceptance == pytest.approx(2 / 3)


def test_drafts_after_a_wrong_one_do_not_count_even_if_they_are_right():
    propose, _ = scripted({3: [99, 12, 13]})
    counts = replay(PROMPT, OUTPUT, propose, 4)
    assert counts.drafted == (1, 1, 1, 0) and counts.accepted == (0, 0, 0, 0)
    assert counts.tried == (1, 0, 0, 0) and counts.steps == 5


def test_more_drafts_than_asked_for_are_cut():
    counts = replay(PROMPT, OUTPUT, lambda token_ids, most: [99] * 10, 2)
    assert counts.drafted == (4, 3) and counts.accepted == (0, 0)


def test_all_right_and_none():
    perfect = replay(PROMPT, OUTPUT, lambda t, most: OUTPUT[len(t) - 2 :][:most], 4)
    assert (perfect.steps, perfect.accepted) == (1, (1, 1, 1, 1))
    silent = replay(PROMPT, OUTPUT, lambda t, most: [], 4)
    assert (silent.steps, silent.tokens_per_step, silent.acceptance) == (5, 1.0, None)
    short = replay(PROMPT, [7], lambda t, most: [1], 4)
    assert (short.tokens, short.steps, short.tokens_per_step) == (0, 0, 1.0)


def test_the_sum_of_two():
    propose, _ = scripted({3: [11, 12, 99]})
    one = replay(PROMPT, OUTPUT, propose, 3)
    both = one + one
    assert (both.tokens, both.steps) == (10, 2 * one.steps)
    assert both.drafted == (2, 2, 2) and both.accepted == (2, 2, 0)
    assert both.by_position == one.by_position and both.acceptance == one.acceptance
    with pytest.raises(ValueError, match="k must be the same, got 3 and 2"):
        one + replay(PROMPT, OUTPUT, propose, 2)
    with pytest.raises(ValueError, match="k must be >= 1, got 0"):
        replay(PROMPT, OUTPUT, propose, 0)


def test_tokens_per_step_follow_from_the_acceptance_by_position():
    """The general form of the model, where each step has k drafts."""
    rng = random.Random(0)
    output = [rng.randrange(1000) for _ in range(8000)]

    def propose(token_ids, most):
        done = len(token_ids)
        return [t if rng.random() < 0.7 else -1 for t in output[done : done + most]]

    counts = replay([], output, propose, 3)
    expected = tokens_by_position(counts.by_position)
    assert counts.tokens_per_step == pytest.approx(expected, rel=0.005)
    assert counts.by_position == pytest.approx([0.7] * 3, abs=0.03)


def test_the_rows_of_a_batch_whose_texts_end_at_different_steps():
    propose, _ = scripted({3: [11, 12, 99]})
    short, long = replay(PROMPT, OUTPUT[:3], propose, 4), replay(PROMPT, OUTPUT, propose, 4)
    assert (short.rows, long.rows) == ((2,), (4, 1, 1))
    assert batch_rows([short, long]) == [6, 1, 1]
    assert batch_rows([]) == []
