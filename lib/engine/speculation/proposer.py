"""Interface between the drafter and a way to make drafts. Introduced in chapter 10."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lib.core.request import Request


@dataclass(frozen=True)
class Draft:
    """Guessed tokens that follow a request's tokens.

    probs: [k, V] float, row i is the distribution that token i was drawn from. None: the tokens
    were not drawn (a copy, an argmax); each is then accepted where the target draws the same token.
    """

    token_ids: tuple[int, ...] = ()
    probs: Tensor | None = None

    def first(self, num_tokens: int) -> Draft:
        """The draft's first `num_tokens` tokens."""
        if num_tokens >= len(self.token_ids):
            return self
        probs = None if self.probs is None or num_tokens == 0 else self.probs[:num_tokens]
        return Draft(self.token_ids[:num_tokens], probs)


class Proposer(Protocol):
    """Makes drafts. They change the time of a text, never its distribution.

    cost_coefficient: c in Leviathan et al. 2023, the time of one draft token per request over the
    time of the target's pass over the same number of tokens; 0 for drafts that need no model.
    """

    cost_coefficient: float

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Draft]:
        """One draft per request, in order, of 0 to limits[i] tokens; limits are >= 1.

        The cache has room for limits[i] tokens more than request i has. A proposer that keeps
        state per request updates it here: since the last call, a request may have received any
        number of tokens, and may have been preempted.
        """

    def free(self, request: Request) -> None:
        """Forget the request; nothing happens if it is not known."""

    def forget_cached(self) -> None:
        """Forget what is kept of requests that have ended, see `CacheManager.forget_cached`."""

    def reset(self) -> None:
        """Forget all requests: a step was interrupted, and what is kept may be incomplete."""

    def check_integrity(self, unfinished: Iterable[Request]) -> None:
        """Raise RuntimeError, saying what is wrong, if something is kept for other requests."""
