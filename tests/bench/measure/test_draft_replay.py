"""Acceptance counted from a finished text, by hand and against the expected tokens per step."""

from __future__ import annotations

import random

import pytest

from lib.bench.measure.draft_replay import batch_rows, decode_rate, replay
from lib.bench.measure.speculation_model import tokens_by_position
from lib.engine.speculation.step_cost import CostCurve

PROMPT, OUTPUT = [1, 2], [10, 11, 12, 13, 14, 15]


def scripted(drafts):
    """A proposer that drafts what `drafts` has for the number of tokens so far, and the number of times it was asked."""
    asked = []

    def propose(token_ids, most):
        asked.append((len(token_ids), most))
        return drafts.get(len(token_ids), [])

    return propose, asked


def test_by_hand():
    # The prompt's step: two right, one wrong, so three tokens. Then a step without drafts, then one that is right.
    propose, asked = scripted({2: [10, 11, 99], 5: [], 6: [14, 15]})
    counts = replay(PROMPT, OUTPUT, propose, 4)
    assert asked == [(2, 4), (5, 2), (6, 1)], "the last token is never drafted"
    assert (counts.rows, counts.gains, counts.steps) == ((4, 1, 2), (3, 1, 2), 3)
    assert counts.drafted == (2, 1, 1, 0)
    assert counts.tried == (2, 1, 1, 0) and counts.accepted == (2, 1, 0, 0)
    assert counts.by_position == [1.0, 1.0, 0.0, None]
    assert counts.tokens_per_step == 2
    assert counts.drafts_per_step == pytest.approx(4 / 3) and counts.acceptance == 0.75


def test_drafts_after_a_wrong_one_do_not_count_even_if_they_are_right():
    propose, _ = scripted({2: [99, 11, 12]})
    counts = replay(PROMPT, OUTPUT, propose, 4)
    assert counts.drafted == (1, 1, 1, 0) and counts.accepted == (0, 0, 0, 0)
    assert counts.tried == (1, 0, 0, 0) and counts.steps == 6


def test_more_drafts_than_asked_for_are_cut():
    counts = replay(PROMPT, OUTPUT, lambda token_ids, most: [99] * 10, 2)
    assert counts.drafted == (5, 4) and counts.accepted == (0, 0)


def test_all_right_and_none():
    perfect = replay(PROMPT, OUTPUT, lambda t, most: OUTPUT[len(t) - 2 :][:most], 4)
    assert (perfect.rows, perfect.accepted) == ((5, 1), (1, 1, 1, 1))
    silent = replay(PROMPT, OUTPUT, lambda t, most: [], 4)
    assert (silent.steps, silent.tokens_per_step, silent.acceptance) == (6, 1.0, None)
    nothing = replay(PROMPT, [], lambda t, most: [1], 4)
    assert (nothing.tokens, nothing.steps, nothing.tokens_per_step) == (0, 0, 1.0)


def test_a_text_that_ended_before_its_limit_was_drafted_beyond_its_end():
    propose, asked = scripted({2: [10, 11], 5: [13, 14, 15]})
    counts = replay(PROMPT, OUTPUT, propose, 4, max_tokens=20)
    assert asked[-1] == (5, 4) and counts.rows == (3, 4)
    assert counts.accepted == (2, 2, 1, 0), "the last token of the text was a draft"
    assert counts.gains == (3, 3), "so its step gave no token of the model's own"
    with pytest.raises(ValueError, match="max_tokens must be >= 6, the output's, got 5"):
        replay(PROMPT, OUTPUT, propose, 4, max_tokens=5)


def test_the_sum_of_two():
    propose, _ = scripted({2: [10, 11, 99]})
    one = replay(PROMPT, OUTPUT, propose, 3)
    both = one + one
    assert (both.tokens, both.steps) == (12, 2 * one.steps)
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
    propose, _ = scripted({2: [10, 11, 99]})
    short, long = replay(PROMPT, OUTPUT[:3], propose, 4), replay(PROMPT, OUTPUT, propose, 4)
    assert (short.rows, long.rows) == ((3,), (4, 1, 1, 1))
    assert batch_rows([short, long]) == [7, 1, 1, 1]
    assert batch_rows([]) == []


def test_the_rate_of_batches_from_the_cost_of_their_steps():
    cost = CostCurve((1, 2, 10), (1.0, 1.0, 9.0))
    plain = replay(PROMPT, OUTPUT, lambda t, most: [], 4)
    assert decode_rate([[plain]], cost) == 1.0
    assert decode_rate([[plain, plain]], cost) == 2.0, "two rows take no longer than one"
    assert decode_rate([[plain, plain], [plain]], cost) == pytest.approx(15 / 10)
    right = replay(PROMPT, OUTPUT, lambda t, most: OUTPUT[len(t) - 2 :][:most], 2)
    assert right.rows == (3, 3)  # the first step does not count
    assert decode_rate([[right]], cost) == pytest.approx(3 / 2)
    with pytest.raises(ValueError, match="steps after the first"):
        decode_rate([[replay(PROMPT, [1], lambda t, most: [], 4)]], cost)
