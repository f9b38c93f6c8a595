"""Closed forms for queues with Poisson arrivals and exponential service, as a check of the simulator.

Erlang 1917; the notation is Kleinrock's (Queueing Systems 1, 1975). Introduced in chapter 13.
"""

from __future__ import annotations

import math


def utilisation(rate: float, service: float, servers: int = 1) -> float:
    """Share of the servers that is busy: rate (requests/s) · service (mean seconds) / servers.

    Raises ValueError unless rate and service are > 0 and servers is >= 1.
    """
    for name, value in (("rate", rate), ("service", service)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be > 0 and finite, got {value}")
    if servers < 1:
        raise ValueError(f"servers must be >= 1, got {servers}")
    return rate * service / servers


def erlang_c(load: float, servers: int) -> float:
    """Probability that a request has to wait in M/M/m. load: rate · service, in servers (erlangs).

    Computed from Erlang's B by its recursion, which does not overflow. Raises ValueError unless 0 < load < servers: beyond
    that the queue grows without bound.
    """
    if servers < 1:
        raise ValueError(f"servers must be >= 1, got {servers}")
    if not 0 < load < servers:
        raise ValueError(f"load must be > 0 and < servers={servers}, got {load}")
    blocked = 1.0
    for m in range(1, servers + 1):
        blocked = load * blocked / (m + load * blocked)
    busy = load / servers
    return blocked / (1 - busy + busy * blocked)


def mean_wait(rate: float, service: float, servers: int = 1) -> float:
    """Mean seconds in the queue before service begins, M/M/m: C(m, a) · service / (m - a), with a = rate · service.

    Raises ValueError where the queue has no limit.
    """
    utilisation(rate, service, servers)
    load = rate * service
    return erlang_c(load, servers) * service / (servers - load)


def wait_percentile(rate: float, service: float, servers: int, q: float) -> float:
    """Seconds that q percent of the requests wait at most, M/M/m: a wait > 0 is exponential with rate (m - a) / service.

    Raises ValueError for q outside 0 to 100 (100 excluded), and where the queue has no limit.
    """
    if not 0 <= q < 100:
        raise ValueError(f"q must be >= 0 and < 100, got {q}")
    utilisation(rate, service, servers)
    load = rate * service
    waits = erlang_c(load, servers)
    beyond = 1 - q / 100
    return max(0.0, math.log(waits / beyond)) * service / (servers - load)
