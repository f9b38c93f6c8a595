"""Server-sent events, and noticing that a client has gone. Introduced in chapter 5."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_T = TypeVar("_T")
DONE = b"data: [DONE]\n\n"


class ClientGone(Exception):
    """The client has closed its connection."""


# Unicode's own line ends, which JSON may hold as they are. Clients that split a stream with str.splitlines (httpx's
# iter_lines does) would cut an event in two at one of them.
_LINE_ENDS = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}


def event(payload: dict[str, Any]) -> bytes:
    """One event, on one line whatever a client takes for the end of a line."""
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).translate(_LINE_ENDS)
    return b"data: " + text.encode() + b"\n\n"


async def unless_gone(request: Request, work: Awaitable[_T]) -> _T:
    """Wait for `work`, cancelled as soon as the client hangs up: then ClientGone. The body must have been read.

    A client that only shuts its sending side down counts as one that has hung up: both send the same FIN, and TCP tells
    them apart only once the server has written to a connection that is closed.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_hang_up(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})  # its `finally` clauses come first


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Response that sends `events` as they come. Calls `close` when all is sent, the client is gone, or it fails.

    Starlette's StreamingResponse would not notice a client that leaves silently where the server speaks ASGI 2.4, and does
    not close an iterator that has not begun.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[bytes], close: Callable[[], None] = lambda: None
    ) -> None:
        self.events, self.close, self.status_code, self.background = events, close, 200, None
        # No buffering in a proxy on the way, or tokens would arrive in lumps.
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(_hang_up(receive))
        try:
            first = asyncio.FIRST_COMPLETED
            await asyncio.wait({sender, gone}, return_when=first)
        finally:
            gone.cancel()
            sender.cancel()
            await asyncio.wait({sender})
            await self.events.aclose()
            # Not left to the generator: its `finally` does not run if it never began.
            self.close()
        if not sender.cancelled() and sender.exception() is not None:
            raise sender.exception()

    async def _send(self, send: Send) -> None:
        head = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})
        part = {"type": "http.response.body"}
        async for data in self.events:
            if not data:
                continue
            # Waits while the client does not read and the socket's buffer is full:
            # `events` is then not read either.
            await send({**part, "body": data, "more_body": True})
        await send({**part, "body": b"", "more_body": False})
