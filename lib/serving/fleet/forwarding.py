"""One HTTP request on its way to a replica, and the FastAPI application called there without a socket.

Introduced in chapter 13.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp

from lib.serving.fleet.prompt_names import prompt_names

TEXT_BLOCK = 64  # characters of a block where the prompt is text: about 16 tokens


@dataclass(frozen=True)
class ForwardedRequest:
    """The parts of an HTTP request that a replica needs; can be pickled. names: of its prompt's blocks, for the router."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes = field(repr=False)
    names: list[bytes] = field(default_factory=list, repr=False)

    def scope(self) -> dict[str, Any]:
        return {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http",
            "method": self.method, "path": self.path, "raw_path": self.path.encode(), "root_path": "",
            "query_string": self.query, "headers": list(self.headers), "client": None, "server": None,
        }  # fmt: skip


def names_of(body: bytes, block_size: int = 16) -> list[bytes]:
    """Names of the prompt in a body of /v1/completions, /v1/chat/completions or /generate; [] where there is none.

    Token ids are cut into blocks of `block_size`, texts and conversations into blocks of `TEXT_BLOCK` characters. Of several
    prompts the first one counts. A body that is not valid has no names; the replica answers with the error.
    """
    try:
        content = json.loads(body)
        salt = content.get("cache_salt")
        prompt = content.get("messages", content.get("prompt"))
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
            # Tools are in the prompt too, before the messages.
            prompt = json.dumps([content.get("tools"), *prompt])
        elif isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            prompt = prompt[0]
        if not isinstance(prompt, str | list):
            return []
        return prompt_names(prompt, TEXT_BLOCK if isinstance(prompt, str) else block_size, salt)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return []


async def call_app(app: ASGIApp, request: ForwardedRequest) -> AsyncIterator[dict[str, Any]]:
    """Calls an ASGI application; yields its messages as it sends them ("http.response.start", "http.response.body").

    Where the caller stops early, the application gets "http.disconnect", as after a closed connection. An error of the
    application is raised.
    """
    messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(maxsize=16)
    gone = asyncio.Event()
    body = [{"type": "http.request", "body": request.body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if body:
            return body.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(request.scope(), receive, messages.put)
        finally:
            if not gone.is_set():
                await messages.put(None)

    task = asyncio.ensure_future(run())
    try:
        while (message := await messages.get()) is not None:
            yield message
        await task
    finally:
        gone.set()
        if not task.done():
            await asyncio.wait({task}, timeout=1.0)  # it sees the disconnect
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # read, so that asyncio does not report it: the caller has gone, or got it above
