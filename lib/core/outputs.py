"""What the caller gets: everything so far (`RequestOutput`) and what is new (`Chunk`). Introduced in chapter 1."""

from __future__ import annotations

from dataclasses import dataclass, field

from lib.core.request import RequestMetrics


@dataclass
class Chunk:
    """What one step added to one completion. `finish_reason` is None until the last chunk."""

    request_id: str
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, float]] | None
    finish_reason: str | None


@dataclass
class Completion:
    """One of the n continuations of a prompt. `text` is "" where the model has no tokenizer."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None
    logprobs: list[dict[int, float]] | None
    metrics: RequestMetrics


@dataclass
class RequestOutput:
    """A prompt and its completions so far; text, token_ids and the others are those of the first."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    completions: list[Completion]
    finished: bool
    chunks: list[Chunk] = field(default_factory=list)
    num_cached_tokens: int | None = (
        None  # prompt tokens found in the prefix cache; None until admission
    )

    text = property(lambda self: self.completions[0].text)
    token_ids = property(lambda self: self.completions[0].token_ids)
    finish_reason = property(lambda self: self.completions[0].finish_reason)
    logprobs = property(lambda self: self.completions[0].logprobs)
    metrics = property(lambda self: self.completions[0].metrics)
