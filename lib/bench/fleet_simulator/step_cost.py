"""Seconds of one engine step by what it computes, fitted to measured steps. Introduced in chapter 13."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class StepCost:
    """A step with n decoding sequences and p prompt tokens takes shared + per_sequence · n + per_prompt_token · p seconds.

    Chapter 6's line, with a term for prompts. The growth with the context is in per_sequence, at the context at which it
    was measured. Raises ValueError unless all are >= 0 and one of the first two is > 0.
    """

    shared: float
    per_sequence: float = 0.0
    per_prompt_token: float = 0.0

    def __post_init__(self) -> None:
        if (
            not min(self.shared, self.per_sequence, self.per_prompt_token) >= 0
            or not self.shared + self.per_sequence > 0
        ):
            raise ValueError(f"{self}: all must be >= 0, and shared or per_sequence > 0")

    def __call__(self, sequences: int, prompt_tokens: int = 0) -> float:
        return self.shared + self.per_sequence * sequences + self.per_prompt_token * prompt_tokens

    def times(self, factor: float) -> StepCost:
        """All three coefficients times a factor, e.g. 4.0 for a device that is four times slower."""
        return StepCost(
            factor * self.shared, factor * self.per_sequence, factor * self.per_prompt_token
        )

    def service(self, prompt: int, answer: int, sequences: int) -> float:
        """Seconds of a replica's time per request, if `sequences` in each step share the fixed cost."""
        per_token = self.shared / sequences + self.per_sequence
        return per_token * answer + self.per_prompt_token * prompt


def fit(steps: Sequence[tuple[int, int, float]]) -> StepCost:
    """The StepCost of (decoding sequences, prompt tokens, seconds) with the least squares of relative errors.

    A coefficient that would be negative is 0, and the others are fitted again. Raises ValueError for fewer than three
    steps, or a time that is not above 0.
    """
    if len(steps) < 3:
        raise ValueError(f"steps must have at least 3 entries, got {len(steps)}")
    if not all(seconds > 0 for *_, seconds in steps):
        raise ValueError(f"every step must take > 0 s, got {min(s for *_, s in steps)}")
    rows = np.array([[1.0, n, p] for n, p, _ in steps])
    seconds = np.array([s for *_, s in steps])
    kept = [0, 1, 2]
    while True:
        found, *_ = np.linalg.lstsq(
            rows[:, kept] / seconds[:, None], np.ones(len(steps)), rcond=None
        )
        if found.min() >= 0 or len(kept) == 1:
            break
        kept.pop(int(found.argmin()))
    result = [0.0, 0.0, 0.0]
    for column, value in zip(kept, found):
        result[column] = float(value)
    return StepCost(*result)
