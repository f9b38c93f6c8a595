"""The model of a server under load: counted by hand, and at its limits."""

import pytest

from lib.loadtest.arrivals import arrival_times
from lib.loadtest.queue_model import StepLine, expected, serve
from lib.loadtest.rounds import in_turns

SLO = {"ttft": 1.5, "tpot": 1.0}


def test_one_request_takes_its_steps():
    (only,) = serve([2.0], 3, StepLine(0.5, 0.25), seats=4)
    assert (only.first, only.last) == (2.75, 4.25)


def test_a_request_joins_at_the_next_step_and_makes_it_longer():
    first, second = serve([0.0, 0.5], 2, StepLine(1.0, 1.0), seats=2)
    assert (first.first, first.last) == (2.0, 5.0)  # steps of 2, then 3 s
    assert (second.first, second.last) == (5.0, 7.0)


def test_who_finds_no_seat_waits_in_order():
    served = serve([0.0, 0.0, 0.0], 2, StepLine(1.0, 0.0), seats=1)
    assert [r.last for r in served] == [2.0, 4.0, 6.0]
    assert expected(served, 2, SLO)["request_throughput"] == 0.5
    assert expected(served, 2, SLO)["goodput"] == pytest.approx(1 / 6)


def test_a_limit_refuses_who_finds_it_reached_and_nobody_else():
    served = serve([0.0, 0.0, 0.0, 1.5, 2.5], 2, StepLine(1.0, 0.0), seats=1, limit=2)
    assert [r.refused for r in served] == [False, False, True, True, False]
    assert expected(served, 2, SLO)["rejected_fraction"] == 0.4


def test_in_overload_the_finite_test_approaches_the_capacity_and_the_refused_share():
    line = StepLine(0.02, 0.002)
    capacity = line.capacity(8, 16)
    arrivals = arrival_times("poisson", 4000, rate=2 * capacity, seed=1)
    free = expected(serve(arrivals, 16, line, 8), 16, SLO)
    assert free["request_throughput"] == pytest.approx(capacity, rel=0.02)
    assert free["ttft"] == pytest.approx(arrivals[-1] / 2, rel=0.1)  # T / 2 times (2 - 1)
    limited = expected(serve(arrivals, 16, line, 8, limit=10), 16, SLO)
    assert limited["rejected_fraction"] == pytest.approx(0.5, abs=0.02)
    assert limited["goodput"] > 5 * free["goodput"]


def test_below_the_knee_the_answer_takes_what_the_formula_says():
    line = StepLine(0.025, 0.0018)
    rate = 0.5 / (16 * line.each)
    served = serve(arrival_times("poisson", 4000, rate=rate, seed=2), 16, line, seats=1000)
    mean = sum(r.last - r.arrived for r in served) / len(served)
    formula = 16 * line(1) / (1 - rate * 16 * line.each)
    assert mean == pytest.approx(formula, rel=0.15)


@pytest.mark.parametrize("bad", [{"answer": 0}, {"seats": 0}, {"limit": 0}])
def test_what_cannot_be_served_is_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        serve([0.0], **{"answer": 2, "line": StepLine(1.0, 0.0), "seats": 1, **bad})
    with pytest.raises(ValueError, match="must be >= 0"):
        StepLine(0.0, 0.0)


def test_turns_rotate():
    order = []
    runs = {name: lambda name=name: order.append(name) or len(order) for name in "abc"}
    assert in_turns(runs, 2) == {"a": [1, 6], "b": [2, 4], "c": [3, 5]}
    assert order == list("abcbca")
