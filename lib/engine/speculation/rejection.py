"""Rejection sampling: verifies sampled drafts so that the output has the model's distribution.

Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding"; Chen et al.
2023, "Accelerating Large Language Model Decoding with Speculative Sampling".

Introduced in chapter 10.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lib.core.device import copy_to
from lib.core.request import Request
from lib.engine.sampling import Sampler
from lib.engine.sampling_row import SamplingRow


def accepts(p: Tensor, q: Tensor, uniform: Tensor) -> Tensor:
    """Whether a draft is kept: with probability min(1, p/q).

    p, q: its probabilities under the model and under the drafter; three tensors of one shape.
    `uniform` in [0, 1). A draft that the model cannot produce is never kept.
    """
    return uniform * q < p


def residual(p: Tensor, q: Tensor) -> Tensor:
    """Weights [R, N] of the token that replaces a rejected draft: max(p - q, 0), not normalised.

    Where rounding leaves nothing (p and q are equal but for their last bits), p itself.
    """
    difference = (p - q).clamp(min=0)
    return torch.where(difference.sum(-1, keepdim=True) > 0, difference, p)


class RejectionSampler(Sampler):
    """A Sampler whose rows may verify a draft that was sampled.

    Such a row's token is its draft, with probability min(1, p/q), or a token drawn from the
    residual, which is never the draft. So the row's token is distributed as p, and as for any
    other draft, "accepted" means that the row's token is the draft.

    p is what the row without a draft would be drawn from: after masks, bias, penalties,
    temperature and truncation. q is `draft_probs`. The draft, its acceptance and the residual have
    random numbers of their own: each is a hash of the request's seed, the position and the purpose.

    Example with two words: p = (0.5, 0.5), q = (0.9, 0.1). The draft is word 0 in 0.9 of all cases
    and kept in 5 of 9 of these: 0.5. If it is rejected, the residual is (0, 0.4), which is word 1:
    0.9 * 4/9 = 0.4. With the 0.1 in which the draft was word 1 and is always kept, this is 0.5.
    """

    def draw(
        self,
        rows: Sequence[Request | SamplingRow],
        weights: Tensor,
        uniform: Tensor,
        ids: Tensor | None = None,
    ) -> Tensor:
        at = [i for i, row in enumerate(rows) if getattr(row, "draft_probs", None) is not None]
        if not at:
            return super().draw(rows, weights, uniform, ids)
        verified: list[SamplingRow] = [rows[i] for i in at]
        index = copy_to(torch.tensor(at), weights.device)
        p = weights[index] / weights[index].sum(-1, keepdim=True)
        q = torch.stack([row.draft_probs for row in verified]).to(p.dtype)
        drafts = copy_to(torch.tensor([[row.next_draft] for row in verified]), weights.device)
        numbers = torch.tensor([[row.uniform("accept")] for row in verified], dtype=p.dtype)
        q_of_drafts = q.gather(1, drafts)
        if ids is None:
            p_of_drafts = p.gather(1, drafts)
        else:  # a draft that is not among the candidates has p = 0
            p_of_drafts = (p * (ids[index] == drafts)).sum(-1, keepdim=True)
            q = q.gather(1, ids[index])
        accepted = accepts(p_of_drafts, q_of_drafts, copy_to(numbers, weights.device))
        weights = weights.index_copy(0, index, residual(p, q))
        token_ids = super().draw(rows, weights, uniform, ids)
        chosen = torch.where(accepted, drafts, token_ids[index].unsqueeze(1)).squeeze(1)
        return token_ids.index_copy(0, index, chosen)
