"""One request under load: when it was due, sent and answered, and how it ended. Introduced in chapter 6.

Names and definitions are those of `vllm bench serve`, with one difference: there a request's clock starts when it is
sent. Here it starts when the request was due (MLPerf's rule), and the times since it was sent stand beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

COMPLETED, REJECTED, FAILED, TIMEOUT, UNSENT = OUTCOMES = (
    "completed",
    "rejected",
    "failed",
    "timeout",
    "unsent",
)


@dataclass
class RequestTrace:
    """All times are seconds since the run began.

    scheduled: when it was due. ready: when it was due and a place was free, if places are limited. sent: when it left.
    chunks: arrival of each piece of the stream that carries output. A piece may hold several tokens.
    output_tokens: as the server's `usage` says; without it, the number of chunks, and `counted` is False.
    outcome: exactly one of OUTCOMES. rejected is the server's refusal for lack of room (429, 503); unsent means that
    the run had ended before.
    """

    index: int
    scheduled: float | None = None  # None: the run ended before it was due
    ready: float | None = None
    sent: float | None = None
    chunks: list[float] = field(default_factory=list)
    end: float | None = None
    outcome: str = UNSENT
    status: int | None = None
    error: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int = 0
    counted: bool = False
    finish_reason: str | None = None

    @property
    def completed(self) -> bool:
        return self.outcome == COMPLETED

    @property
    def ttft(self) -> float | None:
        """From due to the first output."""
        return self.chunks[0] - self.scheduled if self.chunks else None

    @property
    def ttft_sent(self) -> float | None:
        """From sent to the first output: vLLM's TTFT."""
        return self.chunks[0] - self.sent if self.chunks else None

    @property
    def e2e(self) -> float | None:
        """From due to the last output."""
        return self.chunks[-1] - self.scheduled if self.chunks else None

    @property
    def e2e_sent(self) -> float | None:
        """From sent to the last output: vLLM's E2EL."""
        return self.chunks[-1] - self.sent if self.chunks else None

    @property
    def tpot(self) -> float | None:
        """(E2E − TTFT) / (output tokens − 1); None for an answer of one."""
        if self.output_tokens < 2 or not self.chunks:
            return None
        return (self.chunks[-1] - self.chunks[0]) / (self.output_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Times between consecutive chunks: vLLM's ITL.

        With one token per chunk these are the times between tokens.
        """
        following = self.chunks[1:]
        return [after - before for before, after in zip(self.chunks, following)]

    @property
    def lag(self) -> float | None:
        """From due, with a place free, to sent: the generator's own delay."""
        return None if self.sent is None else self.sent - self.ready

    @property
    def wait(self) -> float | None:
        """From due to a free place in a generator that limits the requests in flight."""
        return None if self.ready is None else self.ready - self.scheduled

    def to_json(self) -> dict[str, Any]:
        """Raw times, rounded to the microsecond, and the times derived from them."""
        rounded = lambda value: None if value is None else round(value, 6)  # noqa: E731
        return {
            "index": self.index,
            "outcome": self.outcome,
            "status": self.status,
            "error": self.error,
            "scheduled": rounded(self.scheduled),
            "ready": rounded(self.ready),
            "sent": rounded(self.sent),
            "end": rounded(self.end),
            "chunks": [rounded(at) for at in self.chunks],
            "ttft": rounded(self.ttft),
            "ttft_sent": rounded(self.ttft_sent),
            "tpot": rounded(self.tpot),
            "e2e": rounded(self.e2e),
            "e2e_sent": rounded(self.e2e_sent),
            "lag": rounded(self.lag),
            "wait": rounded(self.wait),
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "counted": self.counted,
            "finish_reason": self.finish_reason,
        }
