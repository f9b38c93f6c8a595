"""One completion on its way to the caller: its request, its text, and how much has been handed out.

Introduced in chapter 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lib.core.outputs import Chunk, Completion
from lib.core.request import Request
from lib.engine.detokenizer import Detokenizer, TextState

_NOT_FINITE = (
    "no token could be chosen: the model's logits are not finite (NaN or infinity), or the "
    "request's constraints allow no token"
)


@dataclass(frozen=True)
class Progress:
    """What a step does to one request, computed before anything is changed.

    The tokens are accepted drafts and the one that was sampled after them; without drafts, that one.
    finish_reason "error": the logits after them were not finite, and the request ends.
    """

    stream: CompletionStream
    position: int  # of the first new token in the sequence
    token_ids: Sequence[int] = ()
    logprobs: Sequence[dict[int, float] | None] = ()
    finish_reason: str | None = None
    text: TextState | None = None  # only with stop strings; other text is decoded when asked for
    num_drafts: int = 0  # verified in this step
    num_accepted: int = 0  # of them, at the beginning of `token_ids`
    finite: bool = True  # False: the sequence's slots, those of drafts included, may hold NaN
    draft_totals: tuple[int, int] = (0, 0)  # the request's metrics after this step
    prompt_position: int = 0  # of the first prompt token that `prompt_logprobs` are of
    prompt_logprobs: Sequence[dict[int, float] | None] = ()


class CompletionStream:
    """`progress` looks, `commit` writes: a step that fails or is interrupted before `commit` left no trace."""

    def __init__(self, request: Request, tokenizer: Any) -> None:
        self.request = request
        self.detokenizer = (
            None
            if tokenizer is None
            else Detokenizer(
                tokenizer,
                request.params.stop,
                request.params.min_tokens,
                request.token_ids,
                request.params.skip_special_tokens,
                request.params.include_stop_str_in_output,
            )
        )
        self._tokens_delivered = self._pieces_delivered = 0
        self._closed = False  # the chunk with the finish reason went out

    def progress(
        self,
        token_ids: Sequence[int | None],
        logprobs: Sequence[dict[int, float] | None],
        num_drafts: int = 0,
        finite: bool = True,
        prompt_logprobs: Sequence[dict[int, float] | None] = (),
    ) -> Progress:
        """What a step's tokens mean: which of them count, whether the request ends, and its text if that decides it.

        token_ids: drafts that were right, then the token that was sampled; None: there were no
        finite logits to sample from. num_drafts: how many drafts the step has verified. finite:
        whether all logits were, those after rejected drafts included; if not, there are no tokens,
        and the next step goes on without drafts. A token that ends the request drops those after it.
        prompt_logprobs: of the prompt's tokens that have none yet.
        """
        request, text, reason, kept = self.request, None, None, 0
        if num_drafts and not finite:
            token_ids = ()  # NaN in a draft's K and V reaches the rows before it, too
        watches_text = self.detokenizer is not None and request.params.stop
        for token_id in token_ids:
            if token_id is None:
                reason = "error"
                break
            reason = request.reason_to_finish(token_id, kept)
            kept += 1
            by_id = reason == "stop"
            if not by_id and request.is_complete_with(token_ids[:kept]):
                reason = "stop"
            if watches_text:
                # A token that ends the text by its id is not part of it, unless that is asked for.
                with_last = not by_id or request.params.include_stop_str_in_output
                new = [token_id] if with_last else []
                text = self.detokenizer.after(new, bool(reason), text)
                reason = "stop" if text.stopped else reason
            if reason is not None:
                break
        accepted = max(0, min(kept, len(token_ids) - 1))
        metrics = request.metrics
        return Progress(
            self,
            request.num_tokens,
            token_ids[:kept],
            logprobs[:kept],
            reason,
            text,
            num_drafts,
            accepted,
            finite,
            draft_totals=(
                metrics.num_draft_tokens + num_drafts,
                metrics.num_accepted_tokens + accepted,
            ),
            prompt_position=len(request.prompt_logprobs or ()),
            prompt_logprobs=prompt_logprobs,
        )

    def commit(self, progress: Progress) -> None:
        """Do what `progress` says. Doing it twice changes nothing."""
        request = self.request
        if progress.text is not None:
            self.detokenizer.commit(progress.text)
        if progress.prompt_logprobs:
            request.put_prompt_logprobs(progress.prompt_position, progress.prompt_logprobs)
        failed = progress.finish_reason == "error"
        if progress.token_ids:
            request.put(
                progress.position,
                progress.token_ids,
                progress.logprobs,
                None if failed else progress.finish_reason,
                progress.num_accepted,
            )
        if progress.num_drafts:
            metrics = request.metrics
            metrics.num_draft_tokens, metrics.num_accepted_tokens = progress.draft_totals
            request.allows_drafts = request.allows_drafts and progress.finite
        if failed:
            request.finish("error", _NOT_FINITE)

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
            self._drafted(start),
            self._draft_spans(),
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

    def _drafted(self, start: int) -> list[bool] | None:
        """Whether each output token from `start` on was an accepted draft; None if none was."""
        request = self.request
        if not request.drafted:
            return None
        first = request.num_prompt_tokens
        flags = [first + i in request.drafted for i in range(start, request.num_output_tokens)]
        return flags if any(flags) else None

    def _draft_spans(self) -> list[tuple[int, int]] | None:
        """Parts of the text since `mark_delivered` that are accepted drafts, or None."""
        request, detokenizer = self.request, self.detokenizer
        if detokenizer is None or not request.drafted:
            return None
        spans: list[tuple[int, int]] = []
        first, ends = request.num_prompt_tokens, [0, *detokenizer.piece_ends]
        position = 0
        for i in range(self._pieces_delivered, len(detokenizer.pieces)):
            start, position = position, position + len(detokenizer.pieces[i])
            if all(first + place in request.drafted for place in range(ends[i], ends[i + 1])):
                if spans and spans[-1][1] == start:
                    start = spans.pop()[0]
                spans.append((start, position))
        return spans or None

    def _pieces(self) -> list[str]:
        """The text of all tokens so far, in pieces: decodes those that have not been."""
        detokenizer, request = self.detokenizer, self.request
        if detokenizer is None:
            return []
        num_tokens = request.num_output_tokens
        if not request.params.include_stop_str_in_output:
            num_tokens -= request.stopped_by_id
        start = request.num_prompt_tokens + detokenizer.state.num_tokens
        new = request.token_ids[start : request.num_prompt_tokens + num_tokens]
        for token_id in new:  # one piece per token, so that accepted drafts can be told apart
            detokenizer.feed([token_id])
        if request.finished and not detokenizer.state.finished:
            detokenizer.feed([], last=True)
        return detokenizer.pieces
