"""Chapter 13: compares with the simulator on 200 short traces."""

import random
from collections.abc import Callable

from book.check import expect
from lib.bench.fleet_simulator.fleet import simulate
from lib.bench.fleet_simulator.replica import ReplicaOptions
from lib.bench.fleet_simulator.requests import SimulatedRequest
from lib.bench.fleet_simulator.step_cost import StepCost

FUNCTION = "waits"


def simulated(arrivals: list[int], seconds: list[int], servers: int) -> list[float]:
    """Seconds that each request waits at a replica whose step takes one second: a server is a place in its batch."""
    requests = [SimulatedRequest(at, 1, n) for at, n in zip(arrivals, seconds)]
    simulate(requests, ReplicaOptions(StepCost(1.0), max_num_seqs=servers), 1)
    return [r.first - 1 - r.at for r in requests]


def check(answer: Callable[[list[int], list[int], int], list[float]]) -> None:
    rng = random.Random(0)
    for _ in range(200):
        servers = rng.randint(1, 3)
        arrivals = sorted(rng.randint(0, 40) for _ in range(rng.randint(1, 9)))
        seconds = [rng.randint(1, 8) for _ in arrivals]
        call = f"waits({arrivals}, {seconds}, {servers})"
        got = answer(list(arrivals), list(seconds), servers)
        expect(call, list(got), simulated(arrivals, seconds, servers))
