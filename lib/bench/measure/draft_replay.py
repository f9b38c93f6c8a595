"""How many drafts would be accepted, counted from a finished text: no model runs.

Verification keeps the text as it is, so what a proposer would have drafted for each beginning of the text, and how much
of it is right, follows from the text alone.

Introduced in chapter 10.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

# From all tokens so far and the most that may be drafted to the drafts.
Propose = Callable[[Sequence[int], int], Sequence[int]]


@dataclass(frozen=True)
class Replay:
    """Counts of one or more texts. The first token of a text comes from its prompt's step and is not counted.

    tokens: that the steps gave. rows: tokens that each step computes, its drafts and one more. drafted[i], tried[i],
    accepted[i]: drafts at position i + 1, those that have only right ones before them, and those of them that are right.
    """

    tokens: int
    rows: tuple[int, ...]
    drafted: tuple[int, ...]
    tried: tuple[int, ...]
    accepted: tuple[int, ...]

    @property
    def steps(self) -> int:
        """With drafts or without."""
        return len(self.rows)

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
        """Of the drafts at each position whose predecessors were all right: the share that was right too.

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
            self.tokens + other.tokens,
            self.rows + other.rows,
            add(self.drafted, other.drafted),
            add(self.tried, other.tried),
            add(self.accepted, other.accepted),
        )


def replay(prompt: Sequence[int], output: Sequence[int], propose: Propose, k: int) -> Replay:
    """Decode `output` again with at most `k` drafts per step from `propose`, and count.

    A step with j accepted drafts gives j + 1 tokens. The last token is never drafted: the step that could
    verify it gives it in any case.
    """
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}")
    drafted, accepted, tried = [0] * k, [0] * k, [0] * k
    done, rows = 1, []
    while done < len(output):
        most = min(k, len(output) - done - 1)
        drafts = list(propose([*prompt, *output[:done]], most))[:most] if most else []
        right = 0
        while right < len(drafts) and drafts[right] == output[done + right]:
            right += 1
        for i in range(len(drafts)):
            drafted[i] += 1
            accepted[i] += i < right
            tried[i] += i <= right
        done += right + 1
        rows.append(1 + len(drafts))
    tokens = max(0, len(output) - 1)
    return Replay(tokens, tuple(rows), tuple(drafted), tuple(tried), tuple(accepted))


def batch_rows(replays: Sequence[Replay]) -> list[int]:
    """Rows of each step where the texts run as one batch from their first step on. Texts that have ended leave it."""
    return [sum(rows) for rows in zip_longest(*(r.rows for r in replays), fillvalue=0)]
