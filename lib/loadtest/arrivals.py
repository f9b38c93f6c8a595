"""When requests come in an open loop: users do not wait for each other. Introduced in chapter 6."""

from __future__ import annotations

import math
import random

ARRIVALS = ("burst", "steady", "poisson", "gamma")


def arrival_times(
    kind: str, n: int, *, rate: float | None = None, burstiness: float = 1.0, seed: int = 0
) -> list[float]:
    """n times in seconds, ascending, the first at 0.

    burst: all at once. steady: one every 1/rate seconds. poisson: independent users, so that the gaps are exponential.
    gamma: gaps with mean 1/rate and squared coefficient of variation 1/burstiness, as vLLM has it: 1 is Poisson, below
    1 is burstier, above 1 approaches steady. `rate` is in requests per second.
    Raises ValueError for an unknown kind, n < 1, and a rate or burstiness that is not above 0 and finite.
    """
    if kind not in ARRIVALS:
        raise ValueError(f"arrivals must be one of {', '.join(ARRIVALS)}, got {kind!r}")
    if n < 1:
        raise ValueError(f"n must be >= 1, got {n}")
    if kind == "burst":
        return [0.0] * n
    if rate is None:
        raise ValueError(f"rate must be given for {kind} arrivals, in requests per second")
    for name, value in (("rate", rate), ("burstiness", burstiness)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be > 0 and finite, got {value}")
    if kind == "steady":
        return [i / rate for i in range(n)]
    shape = 1.0 if kind == "poisson" else burstiness
    rng = random.Random(f"arrivals/{seed}")
    times = [0.0]
    while len(times) < n:
        times.append(times[-1] + rng.gammavariate(shape, 1 / (rate * shape)))
    return times
