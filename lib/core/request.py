"""One completion on its way through the engine. Introduced in chapter 1."""

from __future__ import annotations

import enum
import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lib.core.sampling_params import SamplingParams
from lib.core.token_constraint import TokenConstraint


class Status(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass
class RequestMetrics:
    """When things happened, in seconds of `time.monotonic()`; None until they do."""

    arrival_time: float = field(default_factory=time.monotonic)
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finish_time: float | None = None
    num_preemptions: int = 0
    num_draft_tokens: int = 0  # verified for the request, and how many of them were right
    num_accepted_tokens: int = 0


class Request:
    """A prompt, its output so far, and how much of both the cache already holds.

    `num_computed_tokens` is the only progress there is: each step lets it catch up with `num_tokens`. A fresh prompt, a
    chunk of a long one, a decoded token and a recompute after preemption differ in nothing else.
    """

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        stop_token_ids: frozenset[int] = frozenset(),
        index: int = 0,
        cache_salt: str | None = None,
    ) -> None:
        self.request_id = request_id
        self.index = index  # which of the n completions of its prompt
        self.params = params
        self.stop_token_ids = (
            stop_token_ids  # the model's EOS ids (unless ignored) and the request's own
        )
        self.token_ids = list(prompt_token_ids)  # prompt, then output
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_computed_tokens = 0
        self.block_ids: list[int] = []  # the cache manager's; empty while nothing is held
        self.cache_salt = cache_salt  # only requests with the same salt share cached prefixes
        self.block_hashes: list[bytes] = []  # names of the full blocks; the prefix cache's
        self.num_cached_tokens: int | None = None  # found in the prefix cache at first admission
        self.status = Status.WAITING
        self.finish_reason: str | None = None  # "stop" | "length" | "abort" | "error"
        self.error: str | None = None  # what went wrong, with finish_reason "error"
        self.logprobs: list[dict[int, float]] | None = None if params.logprobs is None else []
        # One per prompt token so far, None for the first. Of n completions only the first has them.
        asked = params.prompt_logprobs is not None and index == 0
        self.prompt_logprobs: list[dict[int, float] | None] | None = [None] if asked else None
        self.allows_drafts = True  # False after drafts that made logits not finite
        self.drafted: set[int] = set()  # positions of the output tokens that were accepted drafts
        # Chapter 12: which tokens may come next, or None for all, and sequences that must not be completed.
        self.constraint: TokenConstraint | None = None
        self.bad_words_token_ids: list[list[int]] = []
        self.metrics = RequestMetrics()
        # A key of its own, so that a request's draws do not depend on its neighbours in the batch.
        self._key = os.urandom(16) if params.seed is None else f"{params.seed}/{index}".encode()

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def finished(self) -> bool:
        return self.status is Status.FINISHED

    @property
    def stopped_by_id(self) -> bool:
        """Whether the last token is the EOS or stop id that ended the request."""
        return self.finish_reason == "stop" and self.token_ids[-1] in self.stop_token_ids

    @property
    def lacks_prompt_logprobs(self) -> bool:
        """Whether log-probabilities of prompt tokens are asked for and not all known."""
        known = self.prompt_logprobs
        return known is not None and len(known) < self.num_prompt_tokens

    @property
    def max_cached_tokens(self) -> int:
        """Leading tokens that need not be computed where a cache holds their K and V.

        All but the last one, whose logits choose the next token. With `prompt_logprobs` the logits
        of earlier tokens are needed as well, once: a token's predict the one after it.
        """
        if self.lacks_prompt_logprobs:
            return len(self.prompt_logprobs) - 1
        return self.num_tokens - 1

    def num_prompt_rows(self, num_tokens: int) -> int:
        """How many of the next `num_tokens` tokens to compute predict a prompt token whose log-probability is lacking."""
        if not self.lacks_prompt_logprobs:
            return 0
        first = max(self.num_computed_tokens, self.max_cached_tokens)
        end = min(self.num_computed_tokens + num_tokens, self.num_prompt_tokens - 1)
        return max(0, end - first)

    def uniform(self, num_output_tokens: int | None = None, purpose: str = "") -> float:
        """The number in [0, 1) that chooses the token after `num_output_tokens` output tokens (default: the next).

        It is a hash of seed, index and position: a generator would advance with every draw, and a
        step that is interrupted after it and then repeated would draw twice. Independent draws at
        one position have different `purpose`s.
        """
        position = self.num_output_tokens if num_output_tokens is None else num_output_tokens
        data = b"%b/%d%b" % (self._key, position, purpose.encode())
        digest = hashlib.blake2b(data, digest_size=8).digest()
        return (int.from_bytes(digest, "little") >> 11) * 2.0**-53

    def allowed(self, draft_token_ids: Sequence[int] = ()) -> np.ndarray | None:
        """Token ids that may follow the output and these drafts, as bits [ceil(V / 8)] uint8; None: all may."""
        if self.constraint is None:
            return None
        return self.constraint.allowed([*self.output_token_ids, *draft_token_ids])

    def completes_bad_words(self, draft_token_ids: Sequence[int] = ()) -> list[int]:
        """Tokens that would complete one of the `bad_words` after the output and these drafts."""
        if not self.bad_words_token_ids:
            return []
        output = [*self.output_token_ids, *draft_token_ids]
        return [
            word[-1]
            for word in self.bad_words_token_ids
            if len(word) == 1 or output[1 - len(word) :] == word[:-1]
        ]

    def is_complete_with(self, new_token_ids: Sequence[int]) -> bool:
        """Whether these tokens complete a text to which the request's constraint lets nothing be added."""
        if self.constraint is None:
            return False
        return self.constraint.is_complete([*self.output_token_ids, *new_token_ids])

    def reason_to_finish(self, token_id: int, num_before: int = 0) -> str | None:
        """The finish_reason if `token_id` comes now: "stop", "length", or None to go on.

        num_before: tokens of the same step that come before it.
        """
        num_output_tokens = self.num_output_tokens + num_before + 1
        if token_id in self.stop_token_ids and num_output_tokens >= self.params.min_tokens:
            return "stop"
        return "length" if num_output_tokens >= self.params.max_tokens else None

    def append(self, token_id: int) -> None:
        """Take a sampled token, and finish if it says so."""
        self.put(self.num_tokens, [token_id], [None], self.reason_to_finish(token_id))

    def put(
        self,
        position: int,
        token_ids: Sequence[int],
        logprobs: Sequence[dict[int, float] | None],
        finish_reason: str | None,
        num_drafted: int = 0,
    ) -> None:
        """Write one step's tokens at `position`, the sequence's end. Doing it twice changes nothing.

        num_drafted: the first so many of them were drafts.
        """
        self.token_ids[position:] = token_ids
        if self.logprobs is not None:
            self.logprobs[position - self.num_prompt_tokens :] = logprobs
        if num_drafted:
            self.drafted.update(range(position, position + num_drafted))
        if self.metrics.first_token_time is None:
            self.metrics.first_token_time = time.monotonic()
        if finish_reason is not None:
            self.finish(finish_reason)

    def put_prompt_logprobs(
        self, position: int, logprobs: Sequence[dict[int, float] | None]
    ) -> None:
        """Write those of the prompt tokens from `position` on. Doing it twice changes nothing."""
        self.prompt_logprobs[position : position + len(logprobs)] = logprobs

    def finish(self, reason: str, error: str | None = None) -> None:
        """End the request. `error`: what went wrong, where the reason is "error"."""
        self.finish_reason, self.error = reason, error
        self.metrics.finish_time = time.monotonic()
        self.status = Status.FINISHED
