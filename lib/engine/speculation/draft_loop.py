"""Drafting with a model: one pass per draft token, all sequences together.

Introduced in chapter 10.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lib.core.batch import Batch, Scheduled
from lib.core.request import Request
from lib.engine.runner import ModelRunner
from lib.engine.speculation.draft_sampling import DraftRow, GreedyDrafts, ProbabilisticDrafts
from lib.engine.speculation.proposer import Draft


class DraftSequence:
    """A request's tokens and the drafts after them.

    It has the attributes that `Batch.build` and the cache managers read of a request.
    `num_computed_tokens` of its tokens are in the cache of the model that drafts.
    """

    def __init__(self, request: Request, num_computed_tokens: int, block_ids: list[int]) -> None:
        self.request, self.request_id = request, request.request_id
        self.token_ids = list(request.token_ids)
        self.num_verified = len(self.token_ids)  # the rest are drafts
        self.num_computed_tokens, self.block_ids = num_computed_tokens, block_ids
        # For a prefix cache. Its names are those of other blocks than the request's own.
        self.cache_salt, self.block_hashes = request.cache_salt, []
        self.num_cached_tokens: int | None = None
        self.finite = True  # False: K and V in the cache may be NaN

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def max_cached_tokens(self) -> int:
        """Tokens that a prefix cache may provide.

        All but the last, whose logits the first draft needs.
        """
        return self.num_tokens - 1

    @property
    def drafts(self) -> tuple[int, ...]:
        return tuple(self.token_ids[self.num_verified :])

    def follow_request(self) -> None:
        """Replace the drafts by the tokens that the request got since.

        Wrong drafts in the cache no longer count as computed. Example: the tokens are a b, the
        drafts c d e, and the cache has a b c d. If the request is now a b c x, a b c remain in the
        cache, and x has to be computed. The last token is computed in any case: a draft begins
        with its logits.
        """
        drafts, start = self.drafts, self.num_verified
        verified = self.request.token_ids[start:]
        kept = 0
        while kept < min(len(drafts), len(verified)) and drafts[kept] == verified[kept]:
            kept += 1
        self.token_ids[start:] = verified
        self.num_verified = len(self.token_ids)
        usable = min(start + kept, self.num_tokens - 1)
        self.num_computed_tokens = min(self.num_computed_tokens, usable)


class DraftLoop:
    """Runs the model that drafts.

    The first pass also computes the tokens of each sequence that its cache lacks. A pass needs the
    tokens of the one before it on the host, so the host waits for the device once per draft token.
    Counts `num_passes` and `tokens_computed`, of all sequences together.
    """

    def __init__(
        self,
        runner: ModelRunner,
        sampler: GreedyDrafts | ProbabilisticDrafts,
        block_size: int,
        max_num_batched_tokens: int,
        device: torch.device,
    ) -> None:
        self.runner, self.sampler = runner, sampler
        self.block_size, self.device = block_size, device
        self.max_num_batched_tokens = max_num_batched_tokens
        self.num_passes = self.tokens_computed = 0

    def draft(self, sequences: Sequence[DraftSequence], limits: Sequence[int]) -> list[Draft]:
        """Append up to `limits[i]` (>= 1) drafts to each sequence, which holds blocks for them.

        The last draft of a sequence is not computed. A sequence gets no draft where a pass of
        `max_num_batched_tokens` cannot hold what is missing of it (a long prompt takes several
        calls), and none after a token that would end the request, or after logits that are not
        finite.
        """
        probs: dict[DraftSequence, list[Tensor | None]] = {s: [] for s in sequences}
        limit_of = dict(zip(sequences, limits))
        work = self._missing(sequences)
        while work:
            logits = self.runner.run(Batch.build(work, self.block_size, self.device))
            self.num_passes += 1
            self.tokens_computed += sum(item.num_tokens for item in work)
            rows = [_row(item) for item in work]
            token_ids, row_probs = self.sampler.choose(logits, rows)
            unfinished = []
            for item, token_id, prob in zip(work, token_ids, row_probs):
                sequence: DraftSequence = item.request
                completes = item.completes
                sequence.num_computed_tokens += item.num_tokens
                if token_id is None:
                    sequence.finite = False
                elif completes:
                    sequence.token_ids.append(token_id)
                    probs[sequence].append(prob)
                    if self._goes_on(sequence, limit_of[sequence]):
                        unfinished.append(sequence)
            work = [Scheduled(sequence, 1) for sequence in unfinished]
        return [_draft(sequence.drafts, probs[sequence]) for sequence in sequences]

    def _missing(self, sequences: Sequence[DraftSequence]) -> list[Scheduled]:
        """The first pass, of at most `max_num_batched_tokens` tokens."""
        work, budget = [], self.max_num_batched_tokens
        for sequence in sequences:
            num_tokens = min(sequence.num_tokens - sequence.num_computed_tokens, budget)
            if num_tokens:
                work.append(Scheduled(sequence, num_tokens))
                budget -= num_tokens
        return work

    @staticmethod
    def _goes_on(sequence: DraftSequence, limit: int) -> bool:
        request, drafts = sequence.request, sequence.drafts
        return (
            len(drafts) < limit
            and request.reason_to_finish(drafts[-1], len(drafts) - 1) is None
            and not request.is_complete_with(drafts)
        )


def _row(item: Scheduled) -> DraftRow | None:
    """What the sampler must know; None: the sequence is not complete after this pass."""
    sequence: DraftSequence = item.request
    return DraftRow(sequence.request, sequence.drafts) if item.completes else None


def _draft(token_ids: tuple[int, ...], probs: Sequence[Tensor | None]) -> Draft:
    """`probs` are those of a request's drafts: all None, or none of them."""
    sampled = bool(probs) and probs[0] is not None
    return Draft(token_ids, torch.stack(list(probs)) if sampled else None)
