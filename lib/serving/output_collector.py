"""One call's queue between the engine's turns and its answer, bounded by merging. Introduced in chapter 5."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lib.core.outputs import Chunk, RequestOutput
from lib.serving.errors import ApiError

# Updates per prompt that wait for a client that reads slower than the engine writes. Below it each step stays an event
# of its own; at it the waiting ones become a single one.
MAX_PENDING = 64


@dataclass
class Update:
    """What is new of one prompt of a call. `output` is set with the last update of the prompt.

    prompt_logprobs: as RequestOutput has them, with each update; None unless asked for.
    """

    position: int  # of the prompt in the call
    chunks: list[Chunk]
    output: RequestOutput | None
    prompt_logprobs: list[dict[int, float] | None] | None = None


class OutputCollector:
    """Updates of one call that its answer has not taken yet: at most MAX_PENDING per prompt.

    As vLLM's RequestOutputCollector does, it merges what is not read in time: a client that stops
    reading costs the memory of its text, not an object per token. All methods run on the event loop.
    """

    def __init__(self) -> None:
        self._pending: dict[int, list[Update]] = {}  # by position
        self._error: ApiError | None = None
        self._news = asyncio.Event()

    def put(self, update: Update) -> None:
        waiting = self._pending.setdefault(update.position, [])
        if len(waiting) == MAX_PENDING:
            waiting[:] = [_merge(waiting)]
        waiting.append(update)
        self._news.set()

    def fail(self, error: ApiError) -> None:
        """End the call: `get` raises `error` once the updates before it are taken."""
        self._error = error
        self._news.set()

    async def get(self) -> list[Update]:
        """All pending updates, at least one. Raises ApiError after `fail`."""
        await self._news.wait()
        pending = self._pending.values()
        updates = [update for waiting in pending for update in waiting]
        self._pending.clear()
        if self._error is None:
            self._news.clear()
        elif not updates:
            raise self._error
        return updates


def _merge(updates: Sequence[Update]) -> Update:
    by_index: dict[int, list[Chunk]] = {}
    for update in updates:
        for chunk in update.chunks:
            by_index.setdefault(chunk.index, []).append(chunk)
    last = updates[-1]
    joined = [_join(chunks) for chunks in by_index.values()]
    return Update(last.position, joined, last.output, last.prompt_logprobs)


def _join(chunks: Sequence[Chunk]) -> Chunk:
    logprobs = None
    if chunks[0].logprobs is not None:
        logprobs = [row for chunk in chunks for row in chunk.logprobs]
    drafted = None
    if any(chunk.drafted for chunk in chunks):
        drafted = [
            flag for chunk in chunks for flag in chunk.drafted or [False] * len(chunk.token_ids)
        ]
    return replace(
        chunks[-1],
        text="".join(chunk.text for chunk in chunks),
        token_ids=[i for chunk in chunks for i in chunk.token_ids],
        logprobs=logprobs,
        drafted=drafted,
        draft_spans=_join_spans(chunks),
    )


def _join_spans(chunks: Sequence[Chunk]) -> list[tuple[int, int]] | None:
    spans, before = [], 0
    for chunk in chunks:
        spans += [(before + start, before + end) for start, end in chunk.draft_spans or []]
        before += len(chunk.text)
    return spans or None
