"""How many drafts would be accepted, counted from a finished text: no model runs.

Verification keeps the text as it is. So the text alone determines what a proposer would have
drafted after each beginning of it, and how much of that is right.

Introduced in chapter 10.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from lib.engine.speculation.step_cost import CostCurve

# Takes all tokens so far and the most drafts that may be made; returns the drafts.
Propose = Callable[[Sequence[int], int], Sequence[int]]


@dataclass(frozen=True)
class Replay:
    """Counts of one or more texts.

    rows: tokens that each step computes, its drafts and one more (the first step also computes the
    prompt, which is not counted). gains: tokens that each step gives. drafted[i]: drafts at
    position i + 1. tried[i]: those of them that have only right ones before them. accepted[i]:
    those of the tried ones that are right.
    """

    rows: tuple[int, ...]
    gains: tuple[int, ...]
    drafted: tuple[int, ...]
    tried: tuple[int, ...]
    accepted: tuple[int, ...]

    @property
    def steps(self) -> int:
        """Number of steps, those without drafts included."""
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """Number of output tokens."""
        return sum(self.gains)

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens of a step, at least 1; 1 where there was no step."""
        return self.tokens / self.steps if self.steps else 1.0

    @property
    def drafts_per_step(self) -> float:
        """Mean drafts of a step, counting the steps without drafts."""
        return sum(self.drafted) / self.steps if self.steps else 0.0

    @property
    def acceptance(self) -> float | None:
        """Accepted drafts over all drafts; None where there were none."""
        total = sum(self.drafted)
        return sum(self.accepted) / total if total else None

    @property
    def by_position(self) -> list[float | None]:
        """Of the drafts at each position with only right ones before them: the share that is right.

        None for a position that was never reached.
        """
        return [right / tried if tried else None for right, tried in zip(self.accepted, self.tried)]

    def __add__(self, other: "Replay") -> "Replay":
        """The counts of both, one after the other; with the same k."""
        if len(self.drafted) != len(other.drafted):
            raise ValueError(
                f"k must be the same, got {len(self.drafted)} and {len(other.drafted)}"
            )
        add = lambda a, b: tuple(x + y for x, y in zip(a, b))  # noqa: E731
        return Replay(
            self.rows + other.rows,
            self.gains + other.gains,
            add(self.drafted, other.drafted),
            add(self.tried, other.tried),
            add(self.accepted, other.accepted),
        )


def replay(
    prompt: Sequence[int],
    output: Sequence[int],
    propose: Propose,
    k: int,
    max_tokens: int | None = None,
) -> Replay:
    """Decode `output` again with at most `k` drafts per step from `propose`, and count.

    The first step computes the prompt, too; of the prompt's rows only the last one is counted. A
    step with j accepted drafts gives j + 1 tokens, so at most one draft less is made than the
    request may still get. It may get `max_tokens` in all (default: the length of `output`).
    """
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}")
    max_tokens = len(output) if max_tokens is None else max_tokens
    if max_tokens < len(output):
        raise ValueError(f"max_tokens must be >= {len(output)}, the output's, got {max_tokens}")
    drafted, accepted, tried = [0] * k, [0] * k, [0] * k
    done, rows, gains = 0, [], []
    while done < len(output):
        most = min(k, max_tokens - done - 1)
        drafts = list(propose([*prompt, *output[:done]], most))[:most] if most else []
        left = output[done:]
        right = 0
        while right < min(len(drafts), len(left)) and drafts[right] == left[right]:
            right += 1
        for i in range(len(drafts)):
            drafted[i] += 1
            tried[i] += i <= right
            accepted[i] += i < right
        rows.append(1 + len(drafts))
        gains.append(min(right + 1, len(left)))
        done += right + 1
    return Replay(tuple(rows), tuple(gains), tuple(drafted), tuple(tried), tuple(accepted))


def batch_rows(replays: Sequence[Replay]) -> list[int]:
    """Rows of each step where the texts run as one batch from their first step on.

    A text that has ended leaves the batch.
    """
    return [sum(rows) for rows in zip_longest(*(r.rows for r in replays), fillvalue=0)]


def decode_rate(batches: Sequence[Sequence[Replay]], cost: CostCurve) -> float:
    """Predicted tokens per second of batches that run one after the other.

    cost: seconds of a step by its rows. Each batch's first step, which computes the prompts, is
    left out. Raises ValueError where no other step is left.
    """
    tokens = sum(sum(r.gains[1:]) for batch in batches for r in batch)
    seconds = sum(float(cost(np.array(batch_rows(batch)[1:])).sum()) for batch in batches)
    if not tokens:
        raise ValueError(f"batches must have steps after the first, got {len(batches)} without")
    return tokens / seconds
