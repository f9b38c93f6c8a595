"""Drafts by the model's own first layers. Introduced in chapter 10.

Self-speculative decoding: Zhang et al. 2024 (Draft & Verify), Elhoushi et al. 2024 (LayerSkip).
The model need not be trained for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from lib.cache.kv_cache import KVCache
from lib.core.attention import Attention
from lib.core.request import Request
from lib.engine.runner import ModelRunner
from lib.engine.speculation.draft_loop import DraftLoop, DraftSequence
from lib.engine.speculation.draft_sampling import draft_sampler
from lib.engine.speculation.proposer import Draft
from lib.models.first_layers import bytes_per_pass, first_layers


class EarlyExitProposer:
    """Drafts with the first `draft_layers` layers, the final norm and the head.

    It needs no cache of its own: these layers' K and V are the model's. A draft of k tokens writes
    them for the request's last token and for the first k - 1 drafts, into slots that the
    verification of the draft writes again, in all layers and with values that are equal up to
    rounding. Nothing is kept per request.
    """

    def __init__(
        self,
        model: nn.Module,
        draft_layers: int,
        attention: Attention,
        kv_cache: KVCache | None,
        max_num_batched_tokens: int,
        draft_sample_method: str = "greedy",
    ) -> None:
        if kv_cache is None:
            raise ValueError(
                "speculative_config.method 'early_exit' needs kv_cache 'contiguous' or 'paged', "
                "whose first layers it reads, got kv_cache 'none'"
            )
        early = first_layers(model, draft_layers)
        self.kv_cache = kv_cache
        self.cost_coefficient = bytes_per_pass(early) / bytes_per_pass(model)
        self.loop = DraftLoop(
            ModelRunner(early, attention),
            draft_sampler(draft_sample_method),
            kv_cache.block_size,
            max_num_batched_tokens,
            kv_cache.k.device,
        )

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Draft]:
        """See `Proposer`. A request with more than one token to compute gets no draft.

        Its other tokens would be computed twice in these layers.
        """
        ready = {
            request: limit
            for request, limit in zip(requests, limits, strict=True)
            if request.num_tokens - request.num_computed_tokens == 1
        }
        sequences = [DraftSequence(r, r.num_computed_tokens, r.block_ids) for r in ready]
        drafts = dict(zip(ready, self.loop.draft(sequences, list(ready.values()))))
        for sequence in sequences:
            if not sequence.finite:  # masked reads of other sequences must not find NaN
                self.kv_cache.remove_non_finite(sequence.block_ids, sequence.num_computed_tokens)
        return [drafts.get(request, Draft()) for request in requests]

    def free(self, request: Request) -> None:
        """Nothing is kept."""

    def forget_cached(self) -> None:
        """Nothing is kept."""

    def reset(self) -> None:
        """Nothing is kept."""

    def check_integrity(self, unfinished: Iterable[Request]) -> None:
        """Nothing is kept."""
