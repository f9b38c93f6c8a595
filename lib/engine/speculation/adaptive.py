"""How many tokens to draft for each request of a step. Introduced in chapter 10.

Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", section 3: if
each draft token is accepted with probability α, independently, then k of them bring
α + α² + ... + α^k tokens beyond the one that the step gives anyway.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lib.core.batch import Scheduled
from lib.core.request import Request
from lib.engine.speculation.step_cost import StepCost

_DECAY = 0.9  # of a request's earlier counts, per draft: about the last ten drafts count
_PRIOR = 0.6  # acceptance rate of a request before its first draft is verified
_PRIOR_WEIGHT = 1.0  # trials that this rate counts like
_FIRST_LENGTH = 3  # most draft tokens of a request until one is accepted
_LEAST_GAIN = 1.02  # tokens per second with drafts over those without: less is within the noise
_PROBE_RATE = 0.9  # acceptance that a request gets to try again
_FIRST_PROBE, _LAST_PROBE = 32, 256  # steps without drafts before a request tries again


@dataclass
class Acceptance:
    """Draft tokens that could be accepted, and those that were; recent ones count more.

    Of a draft whose first a tokens are accepted, a + 1 are trials (a, where all of them are): those
    after the first wrong one say nothing.
    """

    trials: float = 0.0
    accepted: float = 0.0

    def add(self, num_drafts: int, num_accepted: int, decay: float = _DECAY) -> None:
        self.trials = decay * self.trials + min(num_accepted + 1, num_drafts)
        self.accepted = decay * self.accepted + num_accepted

    @property
    def rate(self) -> float:
        """α, between _PRIOR and the observed share: the prior counts like _PRIOR_WEIGHT trials."""
        return (self.accepted + _PRIOR_WEIGHT * _PRIOR) / (self.trials + _PRIOR_WEIGHT)


@dataclass
class _Known:
    """What is known of one request."""

    num_drafts: int  # draft tokens of its metrics that are already accounted for
    num_accepted: int  # accepted ones of them
    acceptance: Acceptance
    waited: int = 0  # steps since its last draft in which this module gave it none
    patience: int = _FIRST_PROBE  # such steps before the next try

    @property
    def tries_again(self) -> bool:
        return self.waited >= self.patience

    @property
    def most(self) -> float:
        """Draft tokens that the request may have: few while nothing speaks for them but the prior."""
        unproven = self.tries_again or not self.acceptance.accepted
        return _FIRST_LENGTH if unproven else math.inf

    def account_for(self, num_drafts: int, num_accepted: int) -> None:
        """Take in the outcome of a draft."""
        if self.tries_again and num_accepted:
            self.patience, self.acceptance = _FIRST_PROBE, Acceptance()
        elif self.tries_again:
            self.patience = min(2 * self.patience, _LAST_PROBE)
        self.waited = 0
        self.acceptance.add(num_drafts, num_accepted)


class AdaptiveLength:
    """Chooses the lengths of a step's drafts that promise most tokens per second.

    The draft token at place j of a request with acceptance rate α is expected to add α^j tokens.
    The draft tokens of all requests are sorted by this number, the largest first. The first n of
    them cost the time of n more tokens in the step, and every n is tried to find the best. It is 0
    with a large batch, where a step's time grows with its tokens, and with low acceptance.

    A request that is left without drafts tries again after 32 steps, and after twice as many each
    time that fails, up to 256. It then counts with a rate of at least 0.9, so that a batch that is
    too large for drafts still leaves it without. If a token is accepted, its rate is estimated
    afresh.

    The rate of a new request begins at 0.6, whatever requests before it had, which may have copied
    where this one does not. Its drafts, and those of a request that tries again, have at most 3
    tokens until one of them is accepted. A request for which the proposer finds no draft adds no
    token to a step.

    The choice changes how many tokens a step verifies. Where drafts are sampled, it can thereby
    change which text a seed gives, but not the distribution of the text.
    """

    def __init__(self, cost: StepCost, cost_coefficient: float = 0.0) -> None:
        """cost_coefficient: of the proposer, as `lib.engine.speculation.proposer` defines it."""
        self.cost, self.cost_coefficient = cost, cost_coefficient
        self._known: dict[Request, _Known] = {}

    def limits(self, scheduled: Sequence[Scheduled], most: Sequence[int]) -> list[int]:
        """Draft tokens for each item, at most `most` of them."""
        rates = [self._rate(item.request) if limit else 0.0 for item, limit in zip(scheduled, most)]
        most = [
            min(limit, self._known[item.request].most) if limit else 0
            for item, limit in zip(scheduled, most)
        ]
        chosen = self._best(scheduled, rates, most)
        for item, limit, length in zip(scheduled, most, chosen):
            if limit and not length:
                self._known[item.request].waited += 1
        return chosen

    def rate(self, request: Request) -> float:
        """The request's acceptance rate as estimated now."""
        known = self._known.get(request)
        return _PRIOR if known is None else known.acceptance.rate

    def free(self, request: Request) -> None:
        self._known.pop(request, None)

    def reset(self) -> None:
        self._known.clear()

    def check_integrity(self, unfinished: Iterable[Request]) -> None:
        """Raise RuntimeError if something is kept for a request that has ended."""
        if gone := self._known.keys() - set(unfinished):
            ids = sorted(request.request_id for request in gone)
            raise RuntimeError(f"acceptance is kept of requests {ids}, which are not unfinished")

    def _rate(self, request: Request) -> float:
        """The rate to reckon with in this step, after accounting for the request's last draft."""
        metrics = request.metrics
        drafts, accepted = metrics.num_draft_tokens, metrics.num_accepted_tokens
        known = self._known.get(request)
        if known is None:
            known = self._known[request] = _Known(drafts, accepted, Acceptance())
        if new_drafts := drafts - known.num_drafts:
            new_accepted = accepted - known.num_accepted
            known.num_drafts, known.num_accepted = drafts, accepted
            known.account_for(new_drafts, new_accepted)
        rate = self.rate(request)
        return max(rate, _PROBE_RATE) if known.tries_again else rate

    def _best(
        self, scheduled: Sequence[Scheduled], rates: Sequence[float], most: Sequence[int]
    ) -> list[int]:
        chosen = [0] * len(scheduled)
        tokens = [
            (rate**place, place, i)
            for i, (rate, limit) in enumerate(zip(rates, most))
            for place in range(1, limit + 1)
        ]
        if not tokens:
            return chosen
        tokens.sort(key=lambda token: (-token[0], token[1]))
        given = sum(item.completes for item in scheduled)  # tokens without any draft
        expected = given + np.cumsum([gain for gain, _, _ in tokens])
        # A pass of the draft model per place, each over one token per request.
        passes = np.maximum.accumulate([place for _, place, _ in tokens])
        num_tokens = sum(item.num_tokens for item in scheduled)
        is_decode = all(item.num_tokens == 1 for item in scheduled)
        verify, without = self.cost.verify, self.cost.decode if is_decode else self.cost.verify
        decode = self.cost.decode(given)
        # Chunks of prompts are computed with drafts or without: they count as a place on the
        # curve, not as time.
        seconds = decode - without(num_tokens) + verify(num_tokens + np.arange(1, len(tokens) + 1))
        speed = expected / (seconds + passes * self.cost_coefficient * verify(given))
        n = int(speed.argmax())
        if speed[n] < _LEAST_GAIN * given / decode:
            return chosen
        for _, place, i in tokens[: n + 1]:
            chosen[i] = max(chosen[i], place)
        return chosen
