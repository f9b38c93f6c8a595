"""Adds drafts to a step's work: how many tokens per request, and which of them are worth verifying.

Introduced in chapter 10.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lib.cache.manager import CacheManager
from lib.core.batch import Scheduled
from lib.core.request import Request
from lib.engine.speculation.adaptive import AdaptiveLength
from lib.engine.speculation.proposer import Proposer


class Drafter:
    """Adds a proposer's drafts to a step where it has room for them.

    A request gets a draft if the step computes the last of its tokens. Drafts only take what the
    scheduler has left: tokens of the step's budget, and blocks that are not in use. They never
    preempt a request, and the step's other work remains as scheduled; where there is less room,
    there are fewer draft tokens.
    """

    def __init__(
        self,
        proposer: Proposer,
        manager: CacheManager,
        num_speculative_tokens: int,
        max_num_batched_tokens: int,
        adaptive: AdaptiveLength | None = None,
    ) -> None:
        """adaptive: chooses the lengths of drafts; None: as long as there is room."""
        self.proposer, self.manager, self.adaptive = proposer, manager, adaptive
        self.num_speculative_tokens = num_speculative_tokens
        self.max_num_batched_tokens = max_num_batched_tokens

    def add_drafts(self, scheduled: list[Scheduled]) -> list[Scheduled]:
        """The same work, with drafts added to it."""
        limits = [self._most(item) for item in scheduled]
        if self.adaptive is not None:
            limits = self.adaptive.limits(scheduled, limits)
        limits = self._with_room(scheduled, limits)
        places = [i for i, limit in enumerate(limits) if limit]
        if not places:
            return scheduled
        requests = [scheduled[i].request for i in places]
        drafts = self.proposer.propose(requests, [limits[i] for i in places])
        work = list(scheduled)
        for i, request, draft in zip(places, requests, drafts, strict=True):
            # A sampled draft keeps tokens that will be rejected: the token that replaces one is
            # drawn from the residual, and only with it does the output have the distribution p.
            skip_forbidden = draft.probs is None
            draft = draft.first(num_possible(request, draft.token_ids, skip_forbidden))
            num_drafts = len(draft.token_ids)
            self.manager.trim(request, request.num_tokens + num_drafts)
            if num_drafts:
                num_tokens = scheduled[i].num_tokens + num_drafts
                work[i] = replace(
                    scheduled[i],
                    num_tokens=num_tokens,
                    draft_token_ids=draft.token_ids,
                    draft_probs=draft.probs,
                )
        return work

    def free(self, request: Request) -> None:
        """Forget a request that has ended."""
        self.proposer.free(request)
        if self.adaptive is not None:
            self.adaptive.free(request)

    def forget_cached(self) -> None:
        """Forget what a draft model's prefix cache holds of requests that have ended."""
        self.proposer.forget_cached()

    def reset(self) -> None:
        """Forget all requests, after a step that was interrupted."""
        self.proposer.reset()
        if self.adaptive is not None:
            self.adaptive.reset()

    def check_integrity(self, unfinished: Iterable[Request]) -> None:
        """Raise RuntimeError, saying what is wrong, if something is kept for other requests."""
        self.proposer.check_integrity(unfinished)
        if self.adaptive is not None:
            self.adaptive.check_integrity(unfinished)

    def _most(self, item: Scheduled) -> int:
        """Draft tokens that could be of use to a request, whatever the step's room.

        A step gives one token more than it accepts, so one less than the request may still have.
        This keeps it within the model's length, too: prompt + max_tokens was checked on arrival.
        """
        request = item.request
        if not item.completes or not request.allows_drafts:
            return 0
        missing = request.params.max_tokens - request.num_output_tokens
        return max(0, min(self.num_speculative_tokens, missing - 1))

    def _with_room(self, scheduled: Sequence[Scheduled], limits: Sequence[int]) -> list[int]:
        """The limits, lowered in order to what budget and cache have room for.

        Blocks for these drafts are allocated.
        """
        budget = self.max_num_batched_tokens - sum(item.num_tokens for item in scheduled)
        granted = []
        for item, limit in zip(scheduled, limits):
            limit = max(0, min(limit, budget))
            while limit and not self.manager.allocate(
                item.request, item.request.num_tokens + limit
            ):
                limit -= 1
            granted.append(limit)
            budget -= limit
        return granted


def num_possible(request: Request, token_ids: Sequence[int], skip_forbidden: bool = True) -> int:
    """Tokens of a draft that can be accepted at all.

    The draft ends after a token that ends the request. With `skip_forbidden` it ends before one
    that the request must not get now, too: a stop id before min_tokens, a token that its constraint
    forbids, the end of a bad word.
    """
    for n, token_id in enumerate(token_ids):
        before = token_ids[:n]
        if request.reason_to_finish(token_id, n) == "stop":
            return n + 1
        if not skip_forbidden:
            continue
        if token_id in request.stop_token_ids:
            return n
        allowed = request.allowed(before)
        if allowed is not None and not allowed[token_id >> 3] >> (token_id & 7) & 1:
            return n
        if token_id in request.completes_bad_words(before):
            return n
    return len(token_ids)
