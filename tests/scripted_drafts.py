"""A drafter for tests: what it proposes is known beforehand, and partly wrong."""

from __future__ import annotations

import random

from lib.core.batch import Scheduled
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
