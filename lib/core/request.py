"""One completion on its way through the engine. Introduced in chapter 1."""

from __future__ import annotations

import enum
import random
import time
from dataclasses import dataclass, field

from lib.core.sampling_params import SamplingParams


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
        self.finish_reason: str | None = None  # "stop" | "length" | "abort"
        self.stopped_by_id = False  # the last token is an EOS or stop id
        self.logprobs: list[dict[int, float]] | None = None if params.logprobs is None else []
        self.metrics = RequestMetrics()
        # One generator a request, so that its draws do not depend on its neighbours in the batch.
        self.rng = (
            random.Random() if params.seed is None else random.Random(f"{params.seed}/{index}")
        )

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
    def max_num_tokens(self) -> int:
        """Tokens the sequence can grow to; the last one is sampled and never needs a slot of its own."""
        return self.num_prompt_tokens + self.params.max_tokens

    @property
    def finished(self) -> bool:
        return self.status is Status.FINISHED

    def append(self, token_id: int) -> None:
        """Take a sampled token, and finish if it says so."""
        self.token_ids.append(token_id)
        if self.metrics.first_token_time is None:
            self.metrics.first_token_time = time.monotonic()
        if token_id in self.stop_token_ids and self.num_output_tokens >= self.params.min_tokens:
            self.stopped_by_id = True
            self.finish("stop")
        elif self.num_output_tokens >= self.params.max_tokens:
            self.finish("length")

    def finish(self, reason: str) -> None:
        self.status = Status.FINISHED
        self.finish_reason = reason
        self.metrics.finish_time = time.monotonic()
