"""Requests of a simulation and their arrival times: steady traffic, bursts, a day. Introduced in chapter 13."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

WAITING, COMPLETED, FAILED, REJECTED = "waiting", "completed", "failed", "rejected"


@dataclass(slots=True)
class SimulatedRequest:
    """One request and what became of it. Times in seconds, lengths in tokens.

    names: names of the prompt's segments from its beginning on; equal names mean equal tokens up to there. ends: by
    segment, the prompt's tokens up to its end. found: tokens that were in the replica's prefix cache. tries: replicas that
    it was sent to. outcome: one of COMPLETED, FAILED and REJECTED in the end.
    """

    at: float
    prompt: int
    answer: int
    names: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    first: float = math.nan
    last: float = math.nan
    found: int = 0
    replica: int = -1
    tries: int = 0
    outcome: str = WAITING

    @property
    def ttft(self) -> float:
        return self.first - self.at

    @property
    def tpot(self) -> float:
        """Seconds per token after the first; 0 for an answer of one token."""
        return (self.last - self.first) / (self.answer - 1) if self.answer > 1 else 0.0


def poisson_times(rate: float, duration: float, seed: int = 0) -> Iterator[float]:
    """Arrivals in seconds, ascending, below `duration`; `rate` per second. Raises ValueError unless both are > 0."""
    return varying_times(lambda _: rate, rate, duration, seed)


def varying_times(
    rate_at: Callable[[float], float], highest: float, duration: float, seed: int = 0
) -> Iterator[float]:
    """Poisson arrivals with a rate that changes: those of the highest rate, each kept with rate_at(t) / highest (thinning).

    Raises ValueError unless highest and duration are > 0, and for a rate above the highest. Lewis and Shedler 1979.
    """
    for name, value in (("highest rate", highest), ("duration", duration)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be > 0 and finite, got {value}")
    return _thinned(rate_at, highest, duration, random.Random(f"arrivals/{seed}"))


def _thinned(
    rate_at: Callable[[float], float], highest: float, duration: float, rng: random.Random
) -> Iterator[float]:
    now = 0.0
    while (now := now + rng.expovariate(highest)) < duration:
        rate = rate_at(now)
        if rate > highest * (1 + 1e-9):
            raise ValueError(f"rate {rate} at {now} s is above the highest, {highest}")
        if rng.random() * highest < rate:
            yield now


def day(mean: float, swing: float = 0.6, bursts: tuple[tuple[float, float, float], ...] = ()):
    """(rate_at, highest) of a day: a sine with its peak at 15:00, times the bursts (begin, seconds, factor).

    mean: requests per second over the day without bursts. swing: 0 is flat, 1 falls to nothing at 03:00. Raises ValueError
    outside of that.
    """
    if not 0 <= swing <= 1:
        raise ValueError(f"swing must be >= 0 and <= 1, got {swing}")

    def rate_at(t: float) -> float:
        rate = mean * (1 + swing * math.cos(2 * math.pi * (t / 86_400 - 15 / 24)))
        for begin, seconds, factor in bursts:
            if begin <= t < begin + seconds:
                rate *= factor
        return rate

    return rate_at, mean * (1 + swing) * math.prod(max(1.0, factor) for *_, factor in bursts)


def shared_prefix_requests(
    times: Iterator[float],
    *,
    groups: int,
    shared: int,
    own: int,
    answer: int,
    skew: float = 1.0,
    seed: int = 0,
) -> list[SimulatedRequest]:
    """Requests whose prompts begin with one of `groups` texts of `shared` tokens, and end with `own` tokens of theirs.

    The k-th text is asked for in proportion to 1 / k^skew (Zipf); 0 is uniform. own and answer are means of exponential
    lengths, at least 1. Raises ValueError for groups, own or answer below 1, and for shared or skew below 0.
    """
    for name, value, least in (("groups", groups, 1), ("own", own, 1), ("answer", answer, 1),
                               ("shared", shared, 0), ("skew", skew, 0)):  # fmt: skip
        if not value >= least:
            raise ValueError(f"{name} must be >= {least}, got {value}")
    rng = random.Random(f"requests/{seed}")
    total, upto = 0.0, []
    for k in range(1, groups + 1):
        total += k**-skew
        upto.append(total)
    # choices() with cumulative weights is a binary search per draw.
    texts = range(groups)
    requests = []
    for at in times:
        (text,) = rng.choices(texts, cum_weights=upto)
        length = shared + 1 + int(rng.expovariate(1 / own))
        tokens = 1 + int(rng.expovariate(1 / answer))
        names, ends = ((text,), (shared,)) if shared else ((), ())
        requests.append(SimulatedRequest(at, length, tokens, names, ends))
    return requests
