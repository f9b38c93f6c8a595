"""A drafter and a proposer for tests: what they propose is known beforehand, and partly wrong."""

from __future__ import annotations

import random

from lib.core.batch import Scheduled
from lib.engine.speculation.proposer import Draft
from tests.helpers import VOCAB


class Script:
    """Drafts up to `most` tokens for each decoding request: what `truth` says, each wrong with probability `wrong`."""

    def __init__(self, engine, truth, most=4, wrong=0.3, seed=0) -> None:
        self.engine, self.truth, self.most, self.wrong = engine, truth, most, wrong
        self.rng = random.Random(seed)

    def add_drafts(self, scheduled):
        return [self._with_drafts(item) for item in scheduled]

    def free(self, request):
        """Nothing is kept per request."""

    def forget_cached(self):
        """Nothing is kept per request."""

    def reset(self):
        """Nothing is kept per request."""

    def check_integrity(self, unfinished):
        """Nothing is kept per request."""

    def _with_drafts(self, item):
        request, manager = item.request, self.engine.manager
        if not item.completes or item.num_tokens > 1 or not request.allows_drafts:
            return item
        done = request.num_output_tokens
        most = min(self.rng.randint(0, self.most), request.params.max_tokens - done - 1)
        drafts = self.truth[request.request_id][done : done + most]
        drafts = [
            self.rng.randrange(VOCAB) if self.rng.random() < self.wrong else d for d in drafts
        ]
        if not drafts or not manager.allocate(request, request.num_tokens + len(drafts)):
            return item
        return Scheduled(request, 1 + len(drafts), tuple(drafts))


class ScriptedProposer:
    """Proposes as many tokens as it may of what `truth` says for the request, each wrong with probability `wrong`.

    The engine's own drafter decides where and how many: `engine.drafter.proposer = ScriptedProposer(...)`.
    """

    cost_coefficient = 0.0

    def __init__(self, truth, wrong=0.3, seed=0, vocab=VOCAB) -> None:
        self.truth, self.wrong, self.vocab = truth, wrong, vocab
        self.rng = random.Random(seed)

    def propose(self, requests, limits):
        assert min(limits) >= 1
        return [Draft(self._tokens(r, limit)) for r, limit in zip(requests, limits, strict=True)]

    def free(self, request):
        """Nothing is kept per request."""

    reset = check_integrity = free

    def _tokens(self, request, limit):
        done = request.num_output_tokens
        return tuple(
            (token + self.rng.randrange(1, self.vocab)) % self.vocab
            if self.rng.random() < self.wrong
            else token
            for token in self.truth[request.request_id][done : done + limit]
        )
