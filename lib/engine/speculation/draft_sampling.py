"""How a model that drafts chooses its tokens: the most likely one, or a sampled one.

Introduced in chapter 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.core.request import Request
from lib.engine.logit_adjustments import adjust
from lib.engine.row_groups import Row
from lib.engine.sampling import Sampler
from lib.engine.sampling_row import SamplingRow

# Per row: the token, None where the logits are not finite; and the distribution [V] that it was
# sampled from, None where it was not sampled.
DraftTokens = tuple[list[int | None], list[Tensor | None]]


@dataclass(frozen=True)
class DraftRow(SamplingRow):
    """A draft's row of logits.

    Its random number is not the one that draws or verifies the token at this position.
    """

    def uniform(self, purpose: str = "draft") -> float:
        return super().uniform(purpose)


class GreedyDrafts:
    """Drafts the most likely token, whatever the request's temperature.

    The request's masks, bias and penalties apply: a token that they exclude would be rejected.
    """

    @torch.inference_mode()
    def choose(self, logits: Tensor, rows: Sequence[Row]) -> DraftTokens:
        values, token_ids = adjust(logits, rows).max(dim=-1)
        chosen = torch.where(values.isfinite(), token_ids, -1).tolist()
        return [token if token >= 0 else None for token in chosen], [None] * len(rows)


class ProbabilisticDrafts(Sampler):
    """Samples drafts with each request's own parameters.

    It also returns the distributions, which the verification of the drafts needs. At temperature 0
    a draft is the most likely token, as without sampling.
    """

    def __init__(self) -> None:
        super().__init__()
        self._probs: dict[Request, Tensor] = {}  # [V] of the rows drawn so far

    def choose(self, logits: Tensor, rows: Sequence[Row]) -> DraftTokens:
        self._probs, self._vocab_size = {}, logits.shape[1]
        token_ids, _ = super().choose(logits, rows).read()
        probs = [None if row is None else self._probs.get(row.request) for row in rows]
        self._probs = {}
        return token_ids, probs

    def draw(
        self,
        rows: Sequence[DraftRow],
        weights: Tensor,
        uniform: Tensor,
        ids: Tensor | None = None,
    ) -> Tensor:
        probs = weights / weights.sum(-1, keepdim=True)
        if ids is not None:
            probs = probs.new_zeros(len(rows), self._vocab_size).scatter(1, ids, probs)
        self._probs.update({row.request: row_probs for row, row_probs in zip(rows, probs)})
        return super().draw(rows, weights, uniform, ids)


def draft_sampler(method: str) -> GreedyDrafts | ProbabilisticDrafts:
    """The sampler that `draft_sample_method` names."""
    return ProbabilisticDrafts() if method == "probabilistic" else GreedyDrafts()
