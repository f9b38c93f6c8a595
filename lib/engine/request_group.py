"""The n requests of one prompt, and how their outputs are put together. Introduced in chapter 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lib.core.outputs import Chunk, Completion, RequestOutput
from lib.core.request import Request
from lib.engine.detokenizer import Detokenizer


class _Stream:
    """One completion: its request, its text, and how much of both has been handed out."""

    def __init__(self, request: Request, tokenizer: Any) -> None:
        self.request = request
        self.detokenizer = (
            None if tokenizer is None else Detokenizer(tokenizer, request.params.stop)
        )
        self.fed = 0  # output tokens given to the detokenizer
        self.delivered = 0  # output tokens handed out in chunks
        self.text_delivered = 0
        self.closed = False  # the chunk with the finish reason went out

    def feed(self) -> None:
        if self.detokenizer is None:
            return
        start, minimum = self.request.num_prompt_tokens, self.request.params.min_tokens
        # A token that ends the text by its id is not part of it, and stop strings wait for min_tokens.
        for position in range(
            self.fed, self.request.num_output_tokens - self.request.stopped_by_id
        ):
            self.detokenizer.feed(
                self.request.token_ids[start + position : start + position + 1],
                check_stop=position + 1 >= minimum,
            )
        self.fed = self.request.num_output_tokens
        if self.request.finished:
            self.detokenizer.finish()

    @property
    def text(self) -> str:
        return "" if self.detokenizer is None else self.detokenizer.text

    def drain(self) -> Chunk | None:
        """The chunk since the last call, or None if nothing is new."""
        self.feed()
        request, start = self.request, self.delivered
        if self.closed or (start == request.num_output_tokens and not request.finished):
            return None
        self.delivered, self.closed = request.num_output_tokens, request.finished
        text = self.text[self.text_delivered :]
        self.text_delivered = len(self.text)
        return Chunk(
            request.request_id,
            request.index,
            text,
            request.output_token_ids[start:],
            None if request.logprobs is None else request.logprobs[start:],
            request.finish_reason,
        )


class RequestGroup:
    """The n requests of one prompt on their way, and the one place where their outputs are put together."""

    def __init__(
        self, request_id: str, prompt: str | None, requests: Sequence[Request], tokenizer: Any
    ) -> None:
        self.request_id, self.prompt, self.requests = request_id, prompt, list(requests)
        self._streams = [_Stream(request, tokenizer) for request in requests]

    @property
    def finished(self) -> bool:
        return all(request.finished for request in self.requests)

    def check_stop_strings(self, index: int) -> bool:
        """Whether completion `index` has just run into one of its stop strings."""
        stream = self._streams[index]
        if stream.detokenizer is None or not stream.request.params.stop:
            return False
        stream.feed()
        return stream.detokenizer.stopped

    def output(self) -> RequestOutput:
        """Everything so far, with the chunks that are new since the last call."""
        chunks = [chunk for stream in self._streams if (chunk := stream.drain()) is not None]
        completions = [
            Completion(
                s.request.index,
                s.text,
                s.request.output_token_ids,
                s.request.finish_reason,
                None if s.request.logprobs is None else list(s.request.logprobs),
                s.request.metrics,
            )
            for s in self._streams
        ]
        first = self.requests[0]
        return RequestOutput(
            self.request_id,
            self.prompt,
            first.token_ids[: first.num_prompt_tokens],
            completions,
            self.finished,
            chunks,
            first.num_cached_tokens,
        )
