"""The simulated fleet: every request has one outcome, whatever happens to the replicas."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from lib.bench.fleet_simulator.events import Autoscaler, Disaggregation, Failure
from lib.bench.fleet_simulator.fleet import simulate
from lib.bench.fleet_simulator.replica import ReplicaOptions
from lib.bench.fleet_simulator.report import Report
from lib.bench.fleet_simulator.requests import (
    COMPLETED,
    FAILED,
    REJECTED,
    SimulatedRequest,
    day,
    poisson_times,
    shared_prefix_requests,
    varying_times,
)
from lib.bench.fleet_simulator.step_cost import StepCost
from lib.bench.paths import repository
from lib.serving.fleet.routing import POLICIES

COST = StepCost(shared=0.01, per_sequence=0.0005, per_prompt_token=0.0001)
OPTIONS = ReplicaOptions(COST, max_num_seqs=16, cache_tokens=4096)


def traffic(rate=20.0, duration=60.0, seed=0, groups=40, answer=40):
    times = poisson_times(rate, duration, seed)
    return shared_prefix_requests(
        times, groups=groups, shared=256, own=32, answer=answer, seed=seed
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_completes_and_a_run_repeats(policy):
    runs = []
    for _ in range(2):
        requests = traffic()
        report = simulate(requests, OPTIONS, 4, policy)
        assert report.outcomes == {COMPLETED: len(requests)}
        assert all(r.at < r.first <= r.last for r in requests)
        assert sum(report.busy) <= report.replica_seconds == pytest.approx(4 * report.duration)
        runs.append([(r.first, r.last, r.replica, r.found) for r in requests])
    assert runs[0] == runs[1]


def test_affinity_finds_more_than_any_balance():
    rates = {policy: simulate(traffic(), OPTIONS, 4, policy).hit_rate for policy in POLICIES}
    assert rates["longest_prefix"] > 1.2 * max(rates[p] for p in POLICIES if p != "longest_prefix")


def test_round_robin_waits_longer_than_two_choices():
    """With answers of very different lengths, turns leave one replica with a queue while another is idle."""
    options = ReplicaOptions(COST, max_num_seqs=2)
    waits = {p: simulate(traffic(rate=15, answer=60), options, 6, p).ttft(90) for p in POLICIES[:3]}
    assert waits["least_loaded"] <= waits["power_of_two"] < waits["round_robin"]


def test_old_loads_make_the_least_loaded_replica_a_herds_target():
    def ttft(policy, age):
        options = ReplicaOptions(COST, max_num_seqs=4)
        return simulate(traffic(rate=40), options, 10, policy, load_age=age).ttft(95)

    assert ttft("least_loaded", 2.0) > 2 * ttft("power_of_two", 0.0)
    assert ttft("least_loaded", 2.0) > 2 * ttft("least_loaded", 0.0)


def test_a_lost_rack_fails_what_had_begun_and_moves_what_had_not():
    options = ReplicaOptions(COST, max_num_seqs=2)
    requests = [SimulatedRequest(0.001 * i, 10, 100) for i in range(16)]
    report = simulate(
        requests, options, 4, "round_robin", failures=[Failure(0.5, [0, 1])]
    )  # 4 requests at each, 2 of them begun
    outcomes = report.outcomes
    assert outcomes == {FAILED: 4, COMPLETED: 12}
    moved = [r for r in requests if r.tries == 2]
    assert len(moved) == 4 and all(r.outcome == COMPLETED and r.replica in (2, 3) for r in moved)
    assert all(r.replica in (0, 1) for r in requests if r.outcome == FAILED)


def test_replicas_that_come_back_have_an_empty_cache_and_take_what_waited():
    requests = [SimulatedRequest(10.0 * i, 300, 5, (7,), (256,)) for i in range(6)]
    report = simulate(requests, OPTIONS, 1, "longest_prefix", failures=[Failure(25.0, [0], 15.0)])
    assert report.outcomes == {COMPLETED: 6}
    assert [r.found for r in requests] == [0, 256, 256, 0, 256, 256]
    assert requests[3].first > 40.0  # it came at 30 s and waited for the replica
    assert report.replica_seconds == pytest.approx(report.duration - 15.0)


def test_without_a_replica_left_requests_are_refused_and_nothing_hangs():
    requests = [SimulatedRequest(1.0 * i, 10, 5) for i in range(6)]
    report = simulate(requests, OPTIONS, 2, failures=[Failure(2.5, [0, 1])])
    assert report.outcomes == {COMPLETED: 3, REJECTED: 3}


def test_the_autoscaler_follows_the_load_within_its_bounds():
    burst = list(poisson_times(60.0, 120.0)) + [200.0 + t for t in poisson_times(2.0, 400.0)]
    requests = [SimulatedRequest(at, 64, 60) for at in burst]
    scaler = Autoscaler(least=2, most=12, target=8, interval=5, startup=10, patience=2)
    options = ReplicaOptions(COST, max_num_seqs=16)
    report = simulate(requests, options, 2, autoscaler=scaler)
    numbers = [count for _, count in report.counts]
    assert report.outcomes == {COMPLETED: len(requests)}  # a replica that is taken away finishes
    assert min(numbers) == 2 and 2 < max(numbers) <= 12 and numbers[-1] == 2
    always = simulate([SimulatedRequest(at, 64, 60) for at in burst], options, 12)
    assert report.replica_seconds < 0.7 * always.replica_seconds
    assert report.ttft(99) > always.ttft(99)  # the price: start-up takes a while


def test_disaggregation_keeps_prompts_out_of_the_decoding_steps():
    def run(**options):
        times = poisson_times(8.0, 60.0)
        requests = [SimulatedRequest(at, 1500, 60) for at in times]
        report = simulate(requests, ReplicaOptions(COST, max_num_seqs=32), 4, **options)
        assert report.outcomes == {COMPLETED: len(requests)}
        return report

    together, apart = run(), run(disaggregation=Disaggregation(2, transfer_per_token=1e-5))
    assert apart.tpot(99) < 0.7 * together.tpot(99)
    assert {r.replica for r in apart.requests} == {2, 3}  # the last one that each was sent to


def test_a_prompt_replica_that_is_lost_does_not_take_decoding_requests_with_it():
    requests = [SimulatedRequest(0.05 * i, 200, 400) for i in range(20)]
    report = simulate(
        requests,
        ReplicaOptions(COST, max_num_seqs=32),
        3,
        disaggregation=Disaggregation(1),
        failures=[Failure(2.0, [0])],
    )
    assert report.outcomes == {COMPLETED: 20}


def test_a_day_has_its_peak_its_night_and_its_bursts():
    rate_at, highest = day(mean=1.0, swing=0.5, bursts=((3600.0, 600.0, 3.0),))
    assert rate_at(15 * 3600) == pytest.approx(1.5) and rate_at(3 * 3600) == pytest.approx(0.5)
    assert rate_at(3700.0) == pytest.approx(3 * rate_at(86_400 + 3700.0))
    by_hour = Counter(int(t // 3600) for t in varying_times(rate_at, highest, 86_400))
    assert by_hour[15] > 2 * by_hour[4] and by_hour[1] > 1.2 * by_hour[2]
    assert sum(by_hour.values()) == pytest.approx(86_400 + 1200 * rate_at(90_000), rel=0.03)


def test_the_report_reads_outcomes_latencies_and_cost():
    requests = [SimulatedRequest(0.0, 10, 3), SimulatedRequest(5.0, 10, 1)]
    report = simulate(requests, ReplicaOptions(COST), 2, "round_robin")
    assert report.ttft(50) == pytest.approx(COST(0, 10))
    assert report.tpot(100) == pytest.approx(COST(1))
    assert report.attainment(ttft=1.0, tpot=1.0) == 1.0
    assert report.attainment(ttft=1.0, tpot=COST(1) / 2) == 0.5
    assert report.cost(3600.0) == pytest.approx(2 * report.duration)
    assert report.output_throughput == pytest.approx(4 / report.duration)
    assert report.over_time(2.0, len) == ([1.0, 3.0, 5.0], [1, None, 1])


def test_requests_at_one_replica_are_counted_by_window():
    def request(at, last, replica=0, outcome=COMPLETED):
        found = SimulatedRequest(at, 1, 2, last=last, replica=replica)
        found.outcome = outcome
        return found

    requests = [
        request(0.0, 2.5),
        request(0.1, 9.0, 1),
        request(0.5, 2.1),
        request(0.6, 9.0, outcome=FAILED),  # its end is not known
        request(2.2, 9.0),  # the one of 2.1 s has ended
        request(6.0, 9.0, outcome=FAILED),
    ]
    report = Report(requests, 9.0, 9.0, [], [])
    assert report.most_present(2.0) == [2, 2, 0, 0]
    assert Report([], 0.0, 0.0, [], []).most_present(2.0) == []


def ordered(*times):
    return [SimulatedRequest(at, 1, 1) for at in times]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: simulate(ordered(2, 1), OPTIONS, 1), "in order of at, got 1 after 2"),
        (lambda: simulate([], OPTIONS, 0), "replicas must be >= 1, got 0"),
        (lambda: simulate([], OPTIONS, 1, failures=[Failure(1, [1])]), "must be 0 to 0, got"),
        (lambda: simulate([], OPTIONS, 1, load_age=-1), "load_age must be >= 0, got -1"),
        (lambda: simulate([], OPTIONS, 2, disaggregation=Disaggregation(2)), "< replicas=2, got 2"),
        (lambda: Failure(-1, [0]), "at must be >= 0"),
        (lambda: Autoscaler(0, 2, 8), "least must be >= 1"),
        (lambda: Autoscaler(1, 2, 0), "target must be > 0, got 0"),
        (lambda: Autoscaler(1, 2, 8, startup=-1), "startup must be >= 0, got -1"),
        (lambda: Disaggregation(0), "prefill_replicas must be >= 1, got 0"),
        (lambda: poisson_times(0, 1), "highest rate must be > 0 and finite, got 0"),
        (lambda: day(1, swing=2), "swing must be >= 0 and <= 1, got 2"),
        (lambda: list(varying_times(lambda t: 9, 1, 99)), "is above the highest, 1"),
        (lambda: shared_prefix_requests([], groups=0, shared=1, own=1, answer=1), "groups must be"),
    ],
)
def test_bad_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_simulator_needs_no_torch():
    code = (
        "import sys, lib.bench.fleet_simulator.fleet; "
        "print([n for n in ('torch', 'ray', 'numba') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=repository(), timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_a_million_requests_have_one_outcome_each():
    requests = shared_prefix_requests(
        poisson_times(2000.0, 500.0), groups=5000, shared=512, own=64, answer=100
    )
    options = ReplicaOptions(StepCost(0.012, 2e-4, 3e-5), cache_tokens=50_000)
    report = simulate(requests, options, 500, "longest_prefix")
    assert len(requests) > 990_000 and report.outcomes == {COMPLETED: len(requests)}
    assert report.hit_rate > 0.5
