"""Seconds of one engine step by what it computes: a line, or measured steps with lines between them.

Introduced in chapter 13.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

import numpy as np


class Cost(Protocol):
    """Seconds of a step with `sequences` decoding sequences and `prompt_tokens` tokens of prompts."""

    def __call__(self, sequences: int, prompt_tokens: int = 0) -> float: ...


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


@dataclass(frozen=True)
class InterpolatedCost:
    """The time of a step by its number of tokens, those of decoding sequences and of prompts together.

    tokens: ascending. seconds: of a step with that many. Between two of them the time is on the line that joins them;
    below the first it is the first's; beyond the last it grows in proportion to the tokens. Raises ValueError for an empty or
    unequal list, and unless tokens ascend from >= 1 and all seconds are > 0.
    """

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        tokens, seconds = self.tokens, self.seconds
        if not tokens or len(tokens) != len(seconds):
            raise ValueError(
                "tokens must have one entry or more, with one time for each entry, "
                f"got {len(tokens)} and {len(seconds)} times"
            )
        if tokens[0] < 1 or any(a >= b for a, b in zip(tokens, tokens[1:])):
            raise ValueError(f"tokens must ascend from >= 1, got {tokens}")
        if not min(seconds) > 0:
            raise ValueError(f"seconds must be > 0, got {min(seconds)}")

    def __call__(self, sequences: int, prompt_tokens: int = 0) -> float:
        n, tokens, seconds = sequences + prompt_tokens, self.tokens, self.seconds
        after = bisect_left(tokens, n)
        if after == 0:
            return seconds[0]
        if after == len(tokens):
            return seconds[-1] * n / tokens[-1]
        share = (n - tokens[after - 1]) / (tokens[after] - tokens[after - 1])
        return seconds[after - 1] + share * (seconds[after] - seconds[after - 1])

    def times(self, factor: float) -> InterpolatedCost:
        """All times multiplied by a factor."""
        return InterpolatedCost(self.tokens, tuple(factor * s for s in self.seconds))


def interpolate(steps: Sequence[tuple[int, int, float]]) -> InterpolatedCost:
    """The median time by number of tokens, of steps given as for `fit`. Raises ValueError where there are none."""
    by_tokens: dict[int, list[float]] = {}
    for sequences, prompt_tokens, seconds in steps:
        by_tokens.setdefault(sequences + prompt_tokens, []).append(seconds)
    tokens = tuple(sorted(by_tokens))
    return InterpolatedCost(tokens, tuple(median(by_tokens[n]) for n in tokens))
