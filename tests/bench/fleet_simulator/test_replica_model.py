"""One simulated replica, against a step-by-step model and against chapter 6's."""

from __future__ import annotations

import math
import random

import pytest

from lib.bench.fleet_simulator.fleet import simulate
from lib.bench.fleet_simulator.replica import ReplicaOptions
from lib.bench.fleet_simulator.requests import COMPLETED, REJECTED, SimulatedRequest
from lib.bench.fleet_simulator.step_cost import InterpolatedCost, StepCost, fit, interpolate
from lib.loadtest.queue_model import StepLine, serve

COST = StepCost(shared=0.01, per_sequence=0.001, per_prompt_token=0.0001)


def step_by_step(requests, options):
    """[(first, last)]: the same replica, one step at a time and without a cache: slow and plain."""
    cost, now = options.cost, 0.0
    times = [[None, None] for _ in requests]
    coming, running = list(range(len(requests))), []
    waiting, left, todo = [], {}, {}
    while coming or waiting or running:
        while coming and requests[coming[0]].at <= now:
            waiting.append(coming.pop(0))
        while waiting and len(running) < options.max_num_seqs:
            i = waiting.pop(0)
            running.append(i)
            left[i], todo[i] = requests[i].prompt, requests[i].answer
        if not running:
            now = requests[coming[0]].at
            continue
        decoding = [i for i in running if not left[i]]
        budget, tokens, done = options.max_num_batched_tokens - len(decoding), 0, []
        for i in running:
            if left[i] and budget:
                chunk = min(left[i], budget)
                left[i] -= chunk
                budget -= chunk
                tokens += chunk
                if not left[i]:
                    done.append(i)
        now += cost(len(decoding), tokens)
        for i in [*decoding, *done]:
            times[i][0] = now if times[i][0] is None else times[i][0]
            todo[i] -= 1
            if not todo[i]:
                times[i][1] = now
                running.remove(i)
    return times


@pytest.mark.parametrize("seed", range(8))
def test_steps_taken_together_are_the_same_as_one_at_a_time(seed):
    rng = random.Random(seed)
    options = ReplicaOptions(
        COST, max_num_seqs=rng.choice((1, 2, 5)), max_num_batched_tokens=rng.choice((8, 50, 400))
    )
    at, requests = 0.0, []
    for _ in range(60):
        at += rng.expovariate(rng.choice((0.5, 3.0, 20.0)))
        requests.append(SimulatedRequest(at, rng.randint(1, 120), rng.randint(1, 40)))
    expected = step_by_step(requests, options)
    simulate(requests, options, 1)
    for request, (first, last) in zip(requests, expected):
        assert request.first == pytest.approx(first)
        assert request.last == pytest.approx(last)


def test_without_prompts_it_is_the_model_of_chapter_6():
    """Chapter 6 counts the first token as a decode step, so here one prompt token costs what a sequence costs."""
    line = StepLine(shared=0.01, each=0.002)
    arrivals = [0.011 * i for i in range(40)]
    expected = serve(arrivals, 16, line, seats=4)
    requests = [SimulatedRequest(at, 1, 16) for at in arrivals]
    simulate(requests, ReplicaOptions(StepCost(0.01, 0.002, 0.002), max_num_seqs=4), 1)
    for request, other in zip(requests, expected):
        assert request.first == pytest.approx(other.first)
        assert request.last == pytest.approx(other.last)


def conversation(at, turns, shared=64):
    names, ends = (*range(turns),), tuple(shared * (i + 1) for i in range(turns))
    return SimulatedRequest(at, shared * turns + 5, 2, names, ends)


def found(requests, cache_tokens):
    simulate(requests, ReplicaOptions(COST, cache_tokens=cache_tokens), 1)
    return [request.found for request in requests]


def test_a_prompt_finds_what_an_earlier_one_computed():
    turns = [conversation(10.0 * i, turns=i + 1) for i in range(3)]
    assert found(turns, cache_tokens=1000) == [0, 64, 128]
    assert found([conversation(10.0 * i, i + 1) for i in range(3)], cache_tokens=0) == [0, 0, 0]
    # Room for two segments: the third is evicted at once, since the tail goes first.
    again = [conversation(10.0 * i, 3) for i in range(3)]
    assert found(again, cache_tokens=128) == [0, 128, 128]


def test_the_last_token_of_a_prompt_is_always_computed():
    requests = [SimulatedRequest(10.0 * i, 64, 2, (1,), (64,)) for i in range(2)]
    assert found(requests, cache_tokens=1000) == [0, 63]


def test_equal_prompts_at_once_wait_for_the_first():
    """As the engine does (chapter 9): one computes the prefix, the others find it a step later."""
    requests = [conversation(0.0, 2) for _ in range(4)]
    assert found(requests, cache_tokens=1000) == [0, 128, 128, 128]
    assert requests[1].first > requests[0].first


def test_a_cached_prefix_is_not_paid_for():
    cold, warm = [conversation(at, 2) for at in (0.0, 10.0)]
    found([cold, warm], cache_tokens=1000)
    assert cold.ttft == pytest.approx(COST(0, 133))
    assert warm.ttft == pytest.approx(COST(0, 5))


def test_a_full_replica_refuses():
    requests = [SimulatedRequest(0.0, 1, 100) for _ in range(5)]
    report = simulate(requests, ReplicaOptions(COST, max_num_seqs=2, max_waiting=1), 1)
    assert [r.outcome for r in requests] == [COMPLETED] * 3 + [REJECTED] * 2
    assert math.isnan(requests[4].first) and report.outcomes[REJECTED] == 2


def test_fit_finds_the_cost_again_and_none_is_negative():
    steps = [(n, p, COST(n, p)) for n in (1, 4, 16) for p in (0, 10, 200)]
    got = fit(steps)
    assert got.shared == pytest.approx(COST.shared)
    assert got.per_sequence == pytest.approx(COST.per_sequence)
    assert got.per_prompt_token == pytest.approx(COST.per_prompt_token)
    falling = fit([(1, 0, 0.011), (4, 0, 0.0105), (16, 0, 0.01), (1, 100, 0.02)])
    assert falling.per_sequence == 0 and falling.shared == pytest.approx(0.0105, rel=0.06)


def test_measured_steps_are_joined_by_lines():
    measured = [(1, 0, 0.03), (0, 10, 0.05), (4, 6, 0.07), (2, 8, 0.06), (0, 30, 0.10)]
    cost = interpolate(measured)
    assert cost.tokens == (1, 10, 30)  # decoding and prompt tokens count together
    assert cost(1) == 0.03 and cost(3, 7) == 0.06 and cost(0, 30) == 0.10
    assert cost(2, 18) == cost(0, 20) == pytest.approx(0.08)
    assert cost(0, 60) == pytest.approx(0.20)
    assert InterpolatedCost((4, 8), (1.0, 2.0))(1) == 1.0
    assert cost.times(2.0)(0, 20) == pytest.approx(0.16)


def test_a_jump_in_the_time_of_steps_is_predicted_where_a_line_fails():
    """A kernel for up to 32 tokens and another beyond: a replica whose steps are so, predicted by both costs."""

    def jumps(sequences, prompt_tokens=0):
        n = sequences + prompt_tokens
        return 0.03 + 0.003 * n + (0.07 if n > 32 else 0.0)

    def median_ttft(cost):
        requests = [SimulatedRequest(0.2 * i, 40, 6) for i in range(60)]
        return simulate(requests, ReplicaOptions(cost, max_num_seqs=4), 1).ttft(50)

    steps = [(n, 0, jumps(n)) for n in (1, 2, 4)] + [(0, p, jumps(0, p)) for p in (8, 32, 33, 64, 256)]  # fmt: skip
    actual = median_ttft(jumps)
    assert median_ttft(interpolate(steps)) == pytest.approx(actual, rel=0.02)
    assert median_ttft(fit(steps)) < 0.8 * actual


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: StepCost(-1.0), "all must be >= 0"),
        (lambda: StepCost(0.0, 0.0, 1.0), "shared or per_sequence > 0"),
        (lambda: interpolate([]), "one time for each entry"),
        (lambda: InterpolatedCost((1, 2), (0.1,)), "one time for each entry"),
        (lambda: InterpolatedCost((2, 1), (0.1, 0.1)), r"ascend from >= 1, got \(2, 1\)"),
        (lambda: InterpolatedCost((0, 1), (0.1, 0.1)), r"ascend from >= 1, got \(0, 1\)"),
        (lambda: InterpolatedCost((1, 2), (0.1, 0.0)), "seconds must be > 0, got 0.0"),
        (lambda: fit([(1, 0, 0.1)]), "at least 3 entries, got 1"),
        (lambda: fit([(1, 0, 0.0)] * 3), "must take > 0 s, got 0.0"),
        (lambda: ReplicaOptions(COST, max_num_seqs=0), "max_num_seqs must be >= 1, got 0"),
        (lambda: ReplicaOptions(COST, max_num_batched_tokens=8), ">= max_num_seqs=64, got 8"),
        (lambda: ReplicaOptions(COST, cache_tokens=-1), "cache_tokens must be >= 0, got -1"),
        (lambda: ReplicaOptions(COST, max_waiting=-1), "max_waiting must be >= 0, got -1"),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
