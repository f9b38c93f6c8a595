"""What the caller gets: everything so far (`RequestOutput`) and what is new (`Chunk`). Introduced in chapter 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lib.core.request import RequestMetrics


@dataclass
class Chunk:
    """What one step added to one completion. `finish_reason` is None until the last chunk.

    The last chunk of an aborted request has the reason "abort", that of a failed one "error".
    `drafted`: whether each token was a draft that the model accepted; None if none was.
    `draft_spans`: the parts of `text`, as (start, end) in characters, that such tokens made; None if
    there are none. Text that several tokens made together, among them one that was no draft, is not
    among them.
    """

    request_id: str
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, float]] | None
    finish_reason: str | None
    drafted: list[bool] | None = None
    draft_spans: list[tuple[int, int]] | None = None


class Completion:
    """One of the n continuations of a prompt, as of the step that returned it.

    text: "" where the model has no tokenizer. token_ids: the output tokens. logprobs: None unless
    asked for; one {token id: log-probability} per output token, the sampled token first.
    finish_reason: None while it runs, then "stop", "length", "abort" or "error". error: with
    "error" the text of what went wrong, else None; the request has failed alone, and its tokens up
    to then are valid. A server answers it with status 500 for this request only.
    metrics: the request's own, filled in as things happen; all else stays as it is.

    Making one takes the same time however long the output is: it remembers the engine's lists,
    which only grow, with their lengths, and copies what is asked for when it is asked for.
    """

    def __init__(
        self,
        index: int,
        token_ids: Sequence[int],
        text_pieces: Sequence[str],
        logprobs: Sequence[dict[int, float]] | None,
        metrics: RequestMetrics,
        *,
        first: int = 0,
        finish_reason: str | None = None,
        error: str | None = None,
    ) -> None:
        """`token_ids[first:]` are the output tokens; `text_pieces` together are the text."""
        self.index, self.metrics = index, metrics
        self.finish_reason, self.error = finish_reason, error
        self._token_ids, self._first, self._end = token_ids, first, len(token_ids)
        self._pieces, self._num_pieces = text_pieces, len(text_pieces)
        self._logprobs = logprobs

    @cached_property
    def text(self) -> str:
        return "".join(self._pieces[: self._num_pieces])

    @cached_property
    def token_ids(self) -> list[int]:
        return list(self._token_ids[self._first : self._end])

    @cached_property
    def logprobs(self) -> list[dict[int, float]] | None:
        return None if self._logprobs is None else list(self._logprobs[: self._end - self._first])

    def __repr__(self) -> str:
        shown = ("index", "text", "token_ids", "finish_reason", "error", "logprobs", "metrics")
        return f"Completion({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"


@dataclass
class RequestOutput:
    """A prompt and its completions so far; text, token_ids and the others are those of the first.

    `prompt_token_ids` and `prompt_logprobs` are shared by all outputs of the request: do not change them.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    completions: list[Completion]
    finished: bool
    chunks: list[Chunk] = field(default_factory=list)
    num_cached_tokens: int | None = (
        None  # prompt tokens found in the prefix cache; None until admission
    )
    # None unless asked for. One per prompt token: None for the first, then {token id: log-probability},
    # the prompt's own token first. Shorter only if the request ended within its prompt.
    prompt_logprobs: list[dict[int, float] | None] | None = None

    text = property(lambda self: self.completions[0].text)
    token_ids = property(lambda self: self.completions[0].token_ids)
    finish_reason = property(lambda self: self.completions[0].finish_reason)
    error = property(lambda self: self.completions[0].error)
    logprobs = property(lambda self: self.completions[0].logprobs)
    metrics = property(lambda self: self.completions[0].metrics)
