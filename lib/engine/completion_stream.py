"""One completion on its way to the caller: its request, its text, and how much has been handed out.

Introduced in chapter 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lib.core.outputs import Chunk, Completion
from lib.core.request import Request
from lib.engine.detokenizer import Detokenizer, TextState

_NOT_FINITE = "the model's logits are not finite (NaN or infinity)"


@dataclass(frozen=True)
class Progress:
    """What a step does to one request, computed before anything is changed."""

    stream: CompletionStream
    position: int  # of the new token in the sequence
    token_id: int | None  # None: the logits were not finite, and the request ends with an error
    logprobs: dict[int, float] | None = None
    finish_reason: str | None = None
    text: TextState | None = None  # only with stop strings; other text is decoded when asked for


class CompletionStream:
    """`progress` looks, `commit` writes: a step that fails or is interrupted before `commit` left no trace."""

    def __init__(self, request: Request, tokenizer: Any) -> None:
        self.request = request
        self.detokenizer = (
            None
            if tokenizer is None
            else Detokenizer(
                tokenizer, request.params.stop, request.params.min_tokens, request.token_ids
            )
        )
        self._tokens_delivered = self._pieces_delivered = 0
        self._closed = False  # the chunk with the finish reason went out

    def progress(self, token_id: int | None, logprobs: dict[int, float] | None) -> Progress:
        """What the sampled token means: whether the request ends with it, and its text if that decides it."""
        request, text = self.request, None
        if token_id is None:
            return Progress(self, request.num_tokens, None, finish_reason="error")
        reason = request.reason_to_finish(token_id)
        if self.detokenizer is not None and request.params.stop:
            # A token that ends the text by its id is not part of it.
            text = self.detokenizer.after([] if reason == "stop" else [token_id], bool(reason))
            reason = "stop" if text.stopped else reason
        return Progress(self, request.num_tokens, token_id, logprobs, reason, text)

    def commit(self, progress: Progress) -> None:
        """Do what `progress` says. Doing it twice changes nothing."""
        if progress.token_id is None:
            self.request.finish("error", _NOT_FINITE)
            return
        if progress.text is not None:
            self.detokenizer.commit(progress.text)
        self.request.put(
            progress.position, progress.token_id, progress.logprobs, progress.finish_reason
        )

    def chunk(self) -> Chunk | None:
        """What is new since `mark_delivered`, or None."""
        request, start = self.request, self._tokens_delivered
        if self._closed or (start == request.num_output_tokens and not request.finished):
            return None
        return Chunk(
            request.request_id,
            request.index,
            "".join(self._pieces()[self._pieces_delivered :]),
            request.token_ids[request.num_prompt_tokens + start :],
            None if request.logprobs is None else request.logprobs[start:],
            request.finish_reason,
        )

    def mark_delivered(self) -> None:
        """The caller has everything so far."""
        self._tokens_delivered = self.request.num_output_tokens
        self._pieces_delivered = len(self._pieces())
        self._closed = self.request.finished

    def completion(self) -> Completion:
        request = self.request
        return Completion(
            request.index,
            request.token_ids,
            self._pieces(),
            request.logprobs,
            request.metrics,
            first=request.num_prompt_tokens,
            finish_reason=request.finish_reason,
            error=request.error,
        )

    def _pieces(self) -> list[str]:
        """The text of all tokens so far, in pieces: decodes those that have not been."""
        detokenizer, request = self.detokenizer, self.request
        if detokenizer is None:
            return []
        num_tokens = request.num_output_tokens - request.stopped_by_id
        start = request.num_prompt_tokens + detokenizer.state.num_tokens
        new = request.token_ids[start : request.num_prompt_tokens + num_tokens]
        if new or (request.finished and not detokenizer.state.finished):
            detokenizer.feed(new, last=request.finished)
        return detokenizer.pieces
