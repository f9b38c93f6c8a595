"""One row of logits and what the sampler must know of it. Introduced in chapter 1."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from lib.core.request import Request
from lib.core.sampling_params import SamplingParams


@dataclass(frozen=True)
class PromptRow:
    """A token of a prompt, at this position: nothing is sampled, its log-probability is asked for."""

    request: Request
    position: int

    @property
    def token_id(self) -> int:
        return self.request.token_ids[self.position]


@dataclass(frozen=True)
class SamplingRow:
    """The token that follows a request's tokens and these drafts, taken as if they were accepted.

    Without drafts it is the request's next token. The names are those of `Request`, for which
    everything that the sampler reads holds without drafts. `next_draft`: the draft that stands
    where this row's token goes, and `draft_probs` [V] the distribution that it was sampled from;
    both are None for a draft that was not sampled, which is compared with the row's token only.
    """

    request: Request
    draft_token_ids: tuple[int, ...] = ()
    next_draft: int | None = None
    draft_probs: Tensor | None = field(default=None, compare=False)

    @property
    def params(self) -> SamplingParams:
        return self.request.params

    @property
    def stop_token_ids(self) -> frozenset[int]:
        return self.request.stop_token_ids

    @property
    def num_output_tokens(self) -> int:
        """Output tokens before this row's token."""
        return self.request.num_output_tokens + len(self.draft_token_ids)

    @property
    def output_token_ids(self) -> list[int]:
        return [*self.request.output_token_ids, *self.draft_token_ids]

    @property
    def token_ids(self) -> list[int]:
        """Prompt, output and drafts."""
        return [*self.request.token_ids, *self.draft_token_ids]

    def uniform(self, purpose: str = "") -> float:
        """`Request.uniform` of this row's position: the same with and without drafts."""
        return self.request.uniform(self.num_output_tokens, purpose)

    def allowed(self) -> np.ndarray | None:
        return self.request.allowed(self.draft_token_ids)

    def completes_bad_words(self) -> list[int]:
        return self.request.completes_bad_words(self.draft_token_ids)
