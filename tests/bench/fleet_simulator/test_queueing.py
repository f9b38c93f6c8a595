"""The closed forms against known values, and the simulator against the closed forms."""

from __future__ import annotations

import math
import random

import pytest

from lib.bench.fleet_simulator.fleet import simulate
from lib.bench.fleet_simulator.queueing import erlang_c, mean_wait, utilisation, wait_percentile
from lib.bench.fleet_simulator.replica import ReplicaOptions
from lib.bench.fleet_simulator.requests import SimulatedRequest, poisson_times
from lib.bench.fleet_simulator.step_cost import StepCost
from lib.bench.measure.percentiles import percentile

STEPS = 1000  # per mean service time: how finely the exponential service is cut into steps


def test_one_server_waits_with_the_probability_that_it_is_busy():
    assert erlang_c(0.7, 1) == pytest.approx(0.7)
    assert mean_wait(0.7, 1.0) == pytest.approx(0.7 / 0.3)  # rho / (mu - lambda)


def test_erlang_c_by_its_definition():
    load, servers = 3.2, 5
    terms = [load**k / math.factorial(k) for k in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    assert erlang_c(load, servers) == pytest.approx(last / (sum(terms) + last))


def test_many_servers_do_not_overflow_and_hardly_wait():
    assert 0 < erlang_c(800.0, 1000) < 1e-8
    assert mean_wait(999.0, 1.0, 1000) > 0


def test_one_queue_beats_two():
    """Two servers behind one queue wait less than two queues with half of the requests each."""
    assert mean_wait(1.6, 1.0, 2) == pytest.approx(0.64 / 0.36)  # rho² / (1 - rho²)
    assert mean_wait(0.8, 1.0, 1) / mean_wait(1.6, 1.0, 2) == pytest.approx(2.25)


@pytest.mark.parametrize("q", [50, 90, 99])
def test_percentiles_of_one_server(q):
    """P(W > t) = rho e^(-(1 - rho) t) for M/M/1 with service 1."""
    wait = wait_percentile(0.7, 1.0, 1, q)
    assert 0.7 * math.exp(-0.3 * wait) == pytest.approx(1 - q / 100)
    assert wait_percentile(0.01, 1.0, 1, 50) == 0


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: erlang_c(2.0, 2), "load must be > 0 and < servers=2, got 2.0"),
        (lambda: erlang_c(0.5, 0), "servers must be >= 1, got 0"),
        (lambda: mean_wait(0.0, 1.0), "rate must be > 0 and finite, got 0.0"),
        (lambda: utilisation(1.0, math.inf), "service must be > 0 and finite, got inf"),
        (lambda: wait_percentile(0.5, 1.0, 1, 100), "q must be >= 0 and < 100, got 100"),
    ],
)
def test_what_has_no_answer_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def exponential_service(n, rate, mean, servers, seed):
    """Waits of n requests at one replica whose `servers` sequences do not slow each other down."""
    rng = random.Random(seed)
    options = ReplicaOptions(StepCost(shared=mean / STEPS), max_num_seqs=servers)
    requests = [
        SimulatedRequest(at, 1, max(1, round(rng.expovariate(1 / STEPS))))
        for at in poisson_times(rate, n / rate, seed)
    ]
    simulate(requests, options, 1)
    # Its first token comes with its first step.
    return [request.first - request.at - mean / STEPS for request in requests]


@pytest.mark.slow
@pytest.mark.parametrize("servers, busy", [(1, 0.5), (2, 0.7), (8, 0.8)])
def test_the_simulator_agrees_with_the_closed_forms_within_one_percent(servers, busy):
    """The mean over four seeds: the error of one run of this length is about one percent itself."""
    rate, mean = busy * servers / 2.0, 2.0
    runs = [exponential_service(150_000, rate, mean, servers, seed) for seed in range(4)]
    waits = [wait for run in runs for wait in run]
    assert sum(waits) / len(waits) == pytest.approx(mean_wait(rate, mean, servers), rel=0.01)
    wait90 = wait_percentile(rate, mean, servers, 90)
    assert percentile(waits, 90) == pytest.approx(wait90, rel=0.02)


def test_a_short_run_agrees_with_the_closed_form():
    waits = exponential_service(40_000, 0.5, 1.0, 1, seed=1)
    assert sum(waits) / len(waits) == pytest.approx(mean_wait(0.5, 1.0), rel=0.05)
