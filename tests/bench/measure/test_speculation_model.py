"""The models of speculative decoding: closed forms, and a simulation of the process that they describe."""

from __future__ import annotations

import random

import pytest

from lib.bench.measure.speculation_model import (
    best_k,
    crossover,
    expected_tokens,
    speed_up,
    tokens_by_position,
)


def simulated(accepted, steps=40_000, seed=0):
    """Mean tokens per step: drafts are accepted up to the first wrong one, and the model adds one token."""
    rng, total = random.Random(seed), 0
    for _ in range(steps):
        total += 1
        for share in accepted:
            if rng.random() >= share:
                break
            total += 1
    return total / steps


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("k", [0, 1, 5])
def test_expected_tokens_is_the_geometric_sum_and_what_a_simulation_finds(alpha, k):
    assert expected_tokens(alpha, k) == pytest.approx(sum(alpha**i for i in range(k + 1)))
    assert expected_tokens(alpha, k) == pytest.approx(tokens_by_position([alpha] * k))
    assert expected_tokens(alpha, k) == pytest.approx(simulated([alpha] * k), rel=0.02)


def test_tokens_by_position_with_a_different_rate_at_each_position():
    assert tokens_by_position([]) == 1
    assert tokens_by_position([0.9, 0.5, 0.8]) == pytest.approx(1 + 0.9 + 0.45 + 0.36)
    assert tokens_by_position([0.9, 0.0, 1.0]) == pytest.approx(1.9)
    assert tokens_by_position([0.9, 0.5, 0.8]) == pytest.approx(
        simulated([0.9, 0.5, 0.8]), rel=0.02
    )


def test_speed_up_counts_the_drafts_time():
    assert speed_up(0.8, 4, 0.0) == pytest.approx(expected_tokens(0.8, 4))
    assert speed_up(0.8, 4, 0.25) == pytest.approx(expected_tokens(0.8, 4) / 2)
    assert speed_up(0.0, 4, 0.1) < 1
    # Drafts as slow as the model never gain, whatever the rate: k + 1 tokens for k + 1 passes.
    assert all(speed_up(a, 3, 1.0) <= 1 for a in (0.0, 0.5, 1.0))


def test_best_k_against_all_k():
    for alpha in (0.1, 0.5, 0.9):
        for cost in (0.02, 0.2, 0.6):
            k = best_k(alpha, cost, 12)
            assert speed_up(alpha, k, cost) == max(speed_up(alpha, n, cost) for n in range(13))
    for alpha in (0.05, 0.3, 0.31, 0.8):  # some number of drafts gains if and only if α > c
        assert (best_k(alpha, 0.3, 12) > 0) == (alpha > 0.3)
    assert best_k(0.1, 0.2, 12) == 0, "where drafts cost more than they give, none is best"
    assert best_k(0.9, 0.02, 12) > best_k(0.5, 0.02, 12)


def test_the_crossover_of_a_sweep():
    assert crossover([1, 2, 4, 8], [2.0, 1.5, 0.9, 0.5]) == 4
    assert crossover([1, 2, 4, 8], [2.0, 0.9, 1.1, 0.5]) == 8, (
        "one disturbed point is not the crossover"
    )
    assert crossover([1, 2, 4, 8], [2.0, 1.5, None, 0.5]) == 8
    assert crossover([1, 2], [2.0, 1.5]) is None
    assert crossover([8, 1], [0.5, 0.7]) == 1
    assert crossover([1, 2], [None, None]) is None


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: expected_tokens(1.5, 2), "alpha must be >= 0 and <= 1, got 1.5"),
        (lambda: expected_tokens(0.5, -1), "k must be >= 0, got -1"),
        (lambda: tokens_by_position([0.5, -0.1]), r"accepted\[1\] must be >= 0"),
        (lambda: speed_up(0.5, 2, -0.1), "cost_ratio must be >= 0"),
        (lambda: best_k(0.5, 0.1, -1), "most must be >= 0"),
        (lambda: crossover([1], []), "the same length"),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()
