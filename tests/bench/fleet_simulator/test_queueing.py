"""The closed forms against known values; the simulator against an exact recursion and against the closed forms."""

from __future__ import annotations

import heapq
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


def simulated_and_exact(n, busy, servers, seed):
    """(waits, exact waits, rate): n requests with exponential service of mean 1 at a replica of `servers` sequences.

    Its sequences do not slow each other down. Exact: each request to the server that is free first, for the same draws.
    """
    rng, rate = random.Random(seed), busy * servers
    requests = [
        SimulatedRequest(at, 1, max(1, round(rng.expovariate(1 / STEPS))))
        for at in poisson_times(rate, n / rate, seed)
    ]
    simulate(requests, ReplicaOptions(StepCost(1 / STEPS), max_num_seqs=servers), 1)
    waits = [request.first - request.at - 1 / STEPS for request in requests]
    free, exact = [0.0] * servers, []
    for request in requests:
        start = max(request.at, heapq.heappop(free))
        heapq.heappush(free, start + request.answer / STEPS)
        exact.append(start - request.at)
    return waits, exact, rate


@pytest.mark.parametrize("servers, busy", [(1, 0.9), (2, 0.8), (8, 0.8), (32, 0.9)])
def test_the_simulator_waits_as_first_come_first_served_does(servers, busy):
    """The same draws: what is left is that a request is admitted at the end of a step, half a step later on average."""
    waits, exact, _ = simulated_and_exact(8_000, busy, servers, seed=servers)
    assert sum(waits) / len(waits) == pytest.approx(sum(exact) / len(exact), rel=0.005, abs=1 / STEPS)  # fmt: skip
    assert percentile(waits, 90) == pytest.approx(percentile(exact, 90), rel=0.005, abs=2 / STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("servers, busy", [(1, 0.5), (2, 0.7)])
def test_the_simulator_agrees_with_the_closed_forms_within_one_percent(servers, busy):
    """Waits that follow each other are alike, so that a mean needs many of them: half a million here."""
    runs = [simulated_and_exact(150_000, busy, servers, seed) for seed in range(4)]
    waits = [wait for waits, _, _ in runs for wait in waits]
    rate = busy * servers
    assert sum(waits) / len(waits) == pytest.approx(mean_wait(rate, 1.0, servers), rel=0.01)
    assert percentile(waits, 90) == pytest.approx(wait_percentile(rate, 1.0, servers, 90), rel=0.02)
