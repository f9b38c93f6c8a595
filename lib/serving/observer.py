"""Accounts for each request's tokens and end: metrics, log line, page. Introduced in chapter 5."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lib.core.outputs import RequestOutput
from lib.core.sampling_params import SamplingParams
from lib.serving.engine_thread import Turn
from lib.serving.logs import log
from lib.serving.page_feed import Feed
from lib.serving.prometheus import PrometheusMetrics


@dataclass
class InFlightRequest:
    """What is known of a request that the engine has. Times are time.monotonic() seconds."""

    request_id: str
    position: int  # of its prompt in the call
    params: SamplingParams
    num_prompt_tokens: int
    arrival: float  # at the HTTP server, before tokenisation
    fields: dict[str, Any]  # for the log
    last_token: dict[int, float] = field(default_factory=dict)  # by completion index
    num_tokens: int = 0

    @property
    def started(self) -> bool:
        return bool(self.last_token)


class Observer:
    def __init__(self, metrics: PrometheusMetrics, feed: Feed) -> None:
        self.metrics, self.feed = metrics, feed

    def progressed(self, request: InFlightRequest, output: RequestOutput, now: float) -> None:
        """Account for the new tokens of one request, and for its end if it ended."""
        for chunk in output.chunks:
            if count := len(chunk.token_ids):
                self._tokens(request, chunk.index, count, now)
        if output.finished:
            self._finished(request, output)

    def failed(self, request: InFlightRequest) -> None:
        self.metrics.failed()
        log(
            "request",
            id=request.request_id,
            **request.fields,
            prompt_tokens=request.num_prompt_tokens,
            output_tokens=request.num_tokens,
            reason="error",
        )

    def turned(self, turn: Turn) -> None:
        self.metrics.turned(turn.stats)
        if turn.snapshot is not None:
            self.feed.publish(turn.snapshot, turn.time)

    def _tokens(self, request: InFlightRequest, index: int, count: int, now: float) -> None:
        previous = request.last_token.get(index)
        if not request.last_token:
            self.metrics.prompt_tokens(request.num_prompt_tokens)
        request.last_token[index] = now
        request.num_tokens += count
        if previous is None:
            self.metrics.first_token(now - request.arrival, count)
            self.feed.first_token(now - request.arrival, count)
        else:
            self.metrics.next_token(now - previous, count)
            self.feed.next_token(now - previous, count)

    def _finished(self, request: InFlightRequest, output: RequestOutput) -> None:
        for completion in output.completions:
            self.metrics.finished(
                completion, request.arrival, request.params, request.num_prompt_tokens
            )
        first = min(
            (c.metrics.first_token_time for c in output.completions if c.metrics.first_token_time),
            default=None,
        )
        end = max(c.metrics.finish_time for c in output.completions)
        reasons = sorted({c.finish_reason for c in output.completions})
        # Over the n sequences: each one's first token is TTFT's, the others are TPOT's.
        gaps = [
            (c.metrics.finish_time - c.metrics.first_token_time) / (len(c.token_ids) - 1)
            for c in output.completions
            if len(c.token_ids) > 1
        ]
        log(
            "request",
            id=request.request_id,
            **request.fields,
            prompt_tokens=request.num_prompt_tokens,
            output_tokens=request.num_tokens,
            ttft_ms=_ms(first and first - request.arrival),
            tpot_ms=_ms(sum(gaps) / len(gaps) if gaps else None),
            e2e_ms=_ms(end - request.arrival),
            preemptions=sum(c.metrics.num_preemptions for c in output.completions),
            reason=",".join(reasons),
        )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
