"""Changes of a fleet during a simulation: lost replicas, automatic scaling, and separate replicas for prompts.

Introduced in chapter 13.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """Replicas that end at the same time, e.g. those of one rack.

    Requests that were admitted there fail, also before their first token; those in the queue go to other replicas.
    at: seconds. replicas: their numbers. restart_after: seconds until a new one with an empty cache takes the place of
    each; None: never. Raises ValueError for times below 0.
    """

    at: float
    replicas: Sequence[int]
    restart_after: float | None = None

    def __post_init__(self) -> None:
        for name in ("at", "restart_after"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be >= 0 and finite, got {value}")


@dataclass(frozen=True)
class Autoscaler:
    """Keeps the number of requests per replica near `target`, between `least` and `most` replicas.

    It compares every `interval` seconds. A new replica takes requests after `startup` seconds, and is paid for from the
    beginning. Replicas are removed only after `patience` intervals in which fewer would have been enough, and finish their
    requests first. Raises ValueError, naming the field, out of its range.
    """

    least: int
    most: int
    target: float
    interval: float = 30.0
    startup: float = 120.0
    patience: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"least must be >= 1 and <= most={self.most}, got {self.least}")
        for name in ("target", "interval"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        for name in ("startup", "patience"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")

    def wanted(self, requests: int) -> int:
        """Number of replicas for this number of requests, running or waiting."""
        return min(self.most, max(self.least, math.ceil(requests / self.target)))


@dataclass(frozen=True)
class Disaggregation:
    """The first `prefill_replicas` replicas compute prompts only; the others decode only.

    transfer_per_token: seconds until the keys and values of one token are at the other replica. Raises ValueError for
    prefill_replicas below 1 or a time below 0.
    """

    prefill_replicas: int
    transfer_per_token: float = 0.0

    def __post_init__(self) -> None:
        if self.prefill_replicas < 1:
            raise ValueError(f"prefill_replicas must be >= 1, got {self.prefill_replicas}")
        if not self.transfer_per_token >= 0:
            raise ValueError(f"transfer_per_token must be >= 0, got {self.transfer_per_token}")
