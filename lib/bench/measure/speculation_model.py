"""What speculative decoding is worth: tokens per step, speed-up, and the batch where it becomes a loss.

Two models. The first (Leviathan, Kalman and Matias 2023) has one acceptance rate α for every draft and one cost ratio c.
The second takes what was measured instead: how often each draft position is accepted, and how long a step of n rows takes.

Introduced in chapter 10.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul


def expected_tokens(alpha: float, k: int) -> float:
    """Tokens per step with k drafts, each accepted with probability `alpha`: (1 - α^(k+1)) / (1 - α).

    The sum 1 + α + … + α^k: the step always gives one token of the model's own.

    >>> expected_tokens(0.5, 2)
    1.75
    """
    _probability("alpha", alpha)
    _at_least("k", k, 0)
    return k + 1.0 if alpha == 1 else (1 - alpha ** (k + 1)) / (1 - alpha)


def speed_up(alpha: float, k: int, cost_ratio: float) -> float:
    """Time per token without drafts over the time with them, where k + 1 rows cost no more than one.

    cost_ratio: time of one draft token over the time of one step of the model (c in the paper).
    """
    if cost_ratio < 0:
        raise ValueError(f"cost_ratio must be >= 0, got {cost_ratio}")
    return expected_tokens(alpha, k) / (k * cost_ratio + 1)


def best_k(alpha: float, cost_ratio: float, most: int) -> int:
    """The number of drafts, 0 to `most`, with the largest `speed_up`; the smallest one where several are equal."""
    return max(range(_at_least("most", most, 0) + 1), key=lambda k: speed_up(alpha, k, cost_ratio))


def tokens_by_position(accepted: Sequence[float]) -> float:
    """Tokens per step where `accepted[i]` is the probability that draft i + 1 is right if all drafts before it are.

    The general form of `expected_tokens`: 1 + a1 + a1 a2 + …

    >>> tokens_by_position([0.5, 0.5])
    1.75
    """
    for i, share in enumerate(accepted):
        _probability(f"accepted[{i}]", share)
    return 1 + sum(accumulate(accepted, mul))


@dataclass(frozen=True)
class StepCost:
    """Seconds of one step by its number of rows (tokens computed), as measured; linear between the points.

    Left of the first point the time is that of the first point. Right of the last one the last slope goes on.
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.seconds) or len(self.rows) < 2:
            raise ValueError(
                f"rows and seconds must have the same length and at least 2 entries, got "
                f"{len(self.rows)} and {len(self.seconds)}"
            )
        if self.rows[0] < 1 or any(a >= b for a, b in zip(self.rows, self.rows[1:])):
            raise ValueError(f"rows must be >= 1 and strictly increasing, got {self.rows}")
        if min(self.seconds) <= 0:
            raise ValueError(f"seconds must be > 0, got {self.seconds}")

    def __call__(self, rows: float) -> float:
        """Seconds of a step of `rows` rows; a fraction stands for a mean over several steps."""
        if rows <= self.rows[0]:
            return self.seconds[0]
        right = min(bisect_left(self.rows, rows), len(self.rows) - 1)
        x0, x1 = self.rows[right - 1 : right + 1]
        y0, y1 = self.seconds[right - 1 : right + 1]
        return y0 + (y1 - y0) * (rows - x0) / (x1 - x0)


def seconds_of(rows: Sequence[int], cost: StepCost) -> float:
    """Seconds of the steps with these numbers of rows."""
    return sum(map(cost, rows))


def steady_speed_up(tokens: float, drafts: float, batch: int, cost: StepCost) -> float:
    """Time per token without drafts over the time with them, for `batch` sequences that never end.

    tokens: that a mean step gives each of them. drafts: that it verifies for each. Without drafts a step has `batch`
    rows and gives each sequence one token; with them it has batch (1 + drafts) rows.
    """
    return tokens * cost(batch) / cost(batch * (1 + drafts))


def crossover(batches: Sequence[int], speed_ups: Sequence[float | None]) -> int | None:
    """The smallest batch of a sweep from which on all known speed-ups are below 1; None: the largest batch still gains.

    All from there on, so that one disturbed point in the middle of a sweep does not count as the crossover.
    """
    if len(batches) != len(speed_ups):
        raise ValueError(
            f"batches and speed_ups must have the same length, got {len(batches)} and {len(speed_ups)}"
        )
    found = None
    for batch, gain in sorted(zip(batches, speed_ups), key=lambda point: -point[0]):
        if gain is not None and gain >= 1:
            break
        found = batch if gain is not None else found
    return found


def _probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be >= 0 and <= 1, got {value}")


def _at_least(name: str, value: int, least: int) -> int:
    if value < least:
        raise ValueError(f"{name} must be >= {least}, got {value}")
    return value
