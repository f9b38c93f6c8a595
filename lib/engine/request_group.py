"""The n requests of one prompt, and how their outputs are put together. Introduced in chapter 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lib.core.outputs import RequestOutput
from lib.core.request import Request
from lib.engine.completion_stream import CompletionStream


class RequestGroup:
    """The n requests of one prompt on their way, and the one place where their outputs are put together."""

    def __init__(
        self, request_id: str, prompt: str | None, requests: Sequence[Request], tokenizer: Any
    ) -> None:
        self.request_id, self.prompt, self.requests = request_id, prompt, list(requests)
        self.prompt_token_ids = list(self.requests[0].token_ids)
        self.streams = [CompletionStream(request, tokenizer) for request in requests]

    @property
    def finished(self) -> bool:
        return all(request.finished for request in self.requests)

    def output(self) -> RequestOutput:
        """Everything so far, with the chunks that are new since `mark_delivered`. Changes nothing."""
        return RequestOutput(
            self.request_id,
            self.prompt,
            self.prompt_token_ids,
            [stream.completion() for stream in self.streams],
            self.finished,
            [chunk for stream in self.streams if (chunk := stream.chunk()) is not None],
            self.requests[0].num_cached_tokens,
            self.requests[0].prompt_logprobs,
        )

    def mark_delivered(self) -> None:
        """The caller has the last `output`."""
        for stream in self.streams:
            stream.mark_delivered()
