"""Predicts speculative decoding's tokens per step, speed-up, and the batch from which on it loses.

Leviathan, Kalman and Matias 2023: one acceptance rate α for every draft, and one cost ratio c. Where
the acceptance was counted by position, `tokens_by_position` takes these counts in the place of α.

Introduced in chapter 10.
"""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul


def expected_tokens(alpha: float, k: int) -> float:
    """Expected tokens per step with k drafts: (1 - α^(k+1)) / (1 - α).

    alpha: probability that a draft is accepted if all before it are. The number is the sum
    1 + α + … + α^k, whose 1 is the token that the model itself adds in each step.

    >>> expected_tokens(0.5, 2)
    1.75
    """
    _probability("alpha", alpha)
    _at_least("k", k, 0)
    return k + 1.0 if alpha == 1 else (1 - alpha ** (k + 1)) / (1 - alpha)


def speed_up(alpha: float, k: int, cost_ratio: float) -> float:
    """Time per token without drafts over that with them, where k + 1 rows cost no more than one.

    cost_ratio: time of one draft token over the time of one step of the model (c in the paper).
    """
    if cost_ratio < 0:
        raise ValueError(f"cost_ratio must be >= 0, got {cost_ratio}")
    return expected_tokens(alpha, k) / (k * cost_ratio + 1)


def best_k(alpha: float, cost_ratio: float, most: int) -> int:
    """The number of drafts, 0 to `most`, with the largest `speed_up`.

    The smallest such number where several are equal.
    """
    return max(range(_at_least("most", most, 0) + 1), key=lambda k: speed_up(alpha, k, cost_ratio))


def tokens_by_position(accepted: Sequence[float]) -> float:
    """Expected tokens per step where the acceptance depends on the position.

    accepted[i]: probability that draft i + 1 is right if all drafts before it are. The general form
    of `expected_tokens`: 1 + a1 + a1 a2 + …

    >>> tokens_by_position([0.5, 0.5])
    1.75
    """
    for i, share in enumerate(accepted):
        _probability(f"accepted[{i}]", share)
    return 1 + sum(accumulate(accepted, mul))


def crossover(batches: Sequence[int], speed_ups: Sequence[float | None]) -> int | None:
    """The smallest batch of a sweep from which on all known speed-ups are below 1.

    None: the largest batch with a known speed-up does not lose, or no speed-up is known. One
    disturbed point in the middle of a sweep does not count as the crossover, since all points from
    there on must lose.
    """
    if len(batches) != len(speed_ups):
        raise ValueError(
            "batches and speed_ups must have the same length, "
            f"got {len(batches)} and {len(speed_ups)}"
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
