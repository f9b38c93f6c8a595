"""What an engine counts since its start. Introduced in chapter 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lib.engine.completion_stream import Progress


@dataclass(frozen=True)
class Totals:
    """Counts as of one step. `after` makes those of the next one, so that a repeated step counts once.

    num_drafts: verified proposals of one or more draft tokens; draft_tokens, accepted_tokens: their
    tokens, and those of them that the requests got. accepted_by_position[i]: how often the draft
    at place i of its proposal was accepted.
    """

    steps: int = 0
    tokens_computed: int = 0
    requests_finished: int = 0
    num_drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    accepted_by_position: tuple[int, ...] = ()

    def after(self, tokens_computed: int, progress: Sequence[Progress]) -> Totals:
        """With one more step of that many tokens."""
        verified = [item for item in progress if item.num_drafts]
        by_position = list(self.accepted_by_position)
        for item in verified:
            by_position += [0] * (item.num_drafts - len(by_position))
            for place in range(item.num_accepted):
                by_position[place] += 1
        return Totals(
            self.steps + 1,
            self.tokens_computed + tokens_computed,
            self.requests_finished + sum(item.finish_reason is not None for item in progress),
            self.num_drafts + len(verified),
            self.draft_tokens + sum(item.num_drafts for item in verified),
            self.accepted_tokens + sum(item.num_accepted for item in verified),
            tuple(by_position),
        )

    @property
    def mean_accepted_length(self) -> float | None:
        """Tokens per verified draft with the one sampled after it, as in vLLM. None before the first."""
        return 1 + self.accepted_tokens / self.num_drafts if self.num_drafts else None

    def with_aborted(self) -> Totals:
        """With one more request that has ended."""
        return replace(self, requests_finished=self.requests_finished + 1)
