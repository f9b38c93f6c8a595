"""What the page hears: a snapshot of the engine, and the tokens since the last one. Introduced in chapter 5."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

from lib.serving.errors import ApiError

MAX_WATCHERS = 16
_HEARTBEAT = 2.0  # seconds; a comment line, by which both ends notice that the other has gone


class Feed:
    """One encoding a snapshot, whoever many watch, and none where nobody does.

    `watch(bool)` tells the engine whether to take snapshots.
    """

    def __init__(self) -> None:
        self.watch: Callable[[bool], None] = lambda watched: None
        self._watchers: set[asyncio.Queue[bytes | None]] = set()
        self._closed = False
        self._forget()

    def first_token(self, seconds: float, count: int) -> None:
        if self._watchers:
            self._tokens += count
            self._ttft.append(round(seconds * 1000, 1))

    def next_token(self, seconds: float, count: int) -> None:
        if self._watchers:
            self._tokens += count
            self._itl[round(seconds * 1000 / count, 1)] += count

    def publish(self, snapshot: dict[str, Any], now: float) -> None:
        news = {
            "time": now,
            "tokens": self._tokens,
            "ttft_ms": self._ttft,
            "itl_ms": list(self._itl.items()),
        }
        self._forget()
        message = (
            b"data: " + json.dumps({**snapshot, **news}, separators=(",", ":")).encode() + b"\n\n"
        )
        for queue in self._watchers:
            if queue.full():
                queue.get_nowait()  # a slow watcher misses some; the next one is newer anyway
            queue.put_nowait(message)

    def subscribe(self) -> AsyncIterator[bytes]:
        """Server-sent events until the watcher leaves or the server does."""
        if len(self._watchers) >= MAX_WATCHERS:
            raise ApiError(
                503, f"{MAX_WATCHERS} pages are watching already", code="overloaded", retry_after=10
            )
        return self._events()

    async def _events(self) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=2)
        self._watchers.add(queue)
        self.watch(True)
        try:
            while not self._closed:
                try:
                    message = await asyncio.wait_for(queue.get(), _HEARTBEAT)
                except TimeoutError:
                    message = b": still here\n\n"
                if message is None:
                    return
                yield message
        finally:
            self._watchers.discard(queue)
            if not self._watchers:
                self.watch(False)
                self._forget()

    def close(self) -> None:
        self._closed = True
        for queue in self._watchers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(None)

    def _forget(self) -> None:
        self._tokens, self._ttft, self._itl = 0, [], Counter()
