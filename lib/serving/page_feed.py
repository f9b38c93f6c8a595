"""The page's event stream: snapshots of the engine, and the tokens between them. Introduced in chapter 5."""

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
    """Sends each snapshot to all watchers, encoded once; takes none while there is no watcher.

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

    def subscribe(self) -> asyncio.Queue[bytes | None]:
        """A watcher's place, for `events` and then `unsubscribe`. Raises ApiError 503 when there is none left."""
        if len(self._watchers) >= MAX_WATCHERS:
            raise ApiError(
                503, f"{MAX_WATCHERS} pages are watching already", code="overloaded", retry_after=10
            )
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=2)
        self._watchers.add(queue)
        self.watch(True)
        return queue

    def unsubscribe(self, queue: asyncio.Queue[bytes | None]) -> None:
        self._watchers.discard(queue)
        if not self._watchers:
            self.watch(False)
            self._forget()

    async def events(self, queue: asyncio.Queue[bytes | None]) -> AsyncIterator[bytes]:
        """Server-sent events until the server ends."""
        while not self._closed:
            try:
                message = await asyncio.wait_for(queue.get(), _HEARTBEAT)
            except TimeoutError:
                message = b": still here\n\n"
            if message is None:
                return
            yield message

    def close(self) -> None:
        self._closed = True
        for queue in self._watchers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(None)

    def _forget(self) -> None:
        self._tokens, self._ttft, self._itl = 0, [], Counter()
