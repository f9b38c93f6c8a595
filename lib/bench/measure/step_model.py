"""What one step of a generation costs, without a cache and with one, from a fixed cost and a rate of arithmetic.

Introduced in chapter 2.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lib.bench.measure import counts

LONGEST = 1024


@dataclass(frozen=True)
class StepModel:
    """fixed: seconds of a pass over one token. rate: FLOP/s of all further tokens. bandwidth: B/s of reading the cache.

    overlap: whether arithmetic hides behind the fixed cost, so that the larger of the two counts, and not their sum.
    """

    config: Any
    fixed: float
    rate: float
    bandwidth: float
    overlap: bool
    dtype: torch.dtype | str = "float32"

    def without(self, length: int) -> float:
        """Seconds of a step that computes all `length` tokens."""
        work = counts.prefill_flops(self.config, length)
        if self.overlap:
            return max(self.fixed, work / self.rate)
        one = counts.prefill_flops(self.config, 1)  # part of the fixed cost
        return self.fixed + (work - one) / self.rate

    def kept(self, length: int) -> float:
        """Seconds of a step of one token that reads K and V of `length`."""
        cache = length * counts.kv_bytes_per_token(self.config, self.dtype)
        return self.fixed + cache / self.bandwidth

    def gain(self, prompt: int, new_tokens: int) -> float:
        """Time of a generation without a cache over its time with one; both compute the prompt in their first step."""
        lengths = range(prompt, prompt + new_tokens)
        with_cache = self.without(prompt) + sum(map(self.kept, lengths[1:]))
        return sum(map(self.without, lengths)) / with_cache

    def factor_at(self, factor: float) -> int | None:
        """Shortest sequence whose step without a cache takes `factor` times as long as with one; None: not by 1,024."""
        return first_length(lambda n: self.without(n) >= factor * self.kept(n))

    def emerges_at(self) -> int | None:
        """Shortest sequence whose step without a cache takes 10 % longer than the fixed cost; None: not by 1,024."""
        return first_length(lambda n: self.without(n) > 1.1 * self.fixed)


def first_length(condition: Callable[[int], bool]) -> int | None:
    """Shortest sequence, up to 1,024 tokens, that meets a condition which every longer one meets too; None: there is none."""
    lengths = range(1, LONGEST + 1)
    found = bisect_left(lengths, True, key=condition)
    return lengths[found] if found < len(lengths) else None


def rate_between(
    config: Any, short: int, short_seconds: float, long: int, long_seconds: float
) -> float | None:
    """FLOP/s of the operations by which a long pass exceeds a short one; None where the long one takes no longer."""
    more = counts.prefill_flops(config, long) - counts.prefill_flops(config, short)
    seconds = long_seconds - short_seconds
    return more / seconds if more > 0 and seconds > 0 else None
