"""Checks before a request reaches its route: the key, and the body's size. Introduced in chapter 5."""

from __future__ import annotations

import asyncio
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lib.serving.errors import ApiError, refuse

_GUARDED = ("/v1", "/generate", "/engine", "/tokenize", "/detokenize")
_BODY_SECONDS = 30.0
_DISCARDED = 16  # times the limit: up to here a body is read and dropped, for a client that reads only after writing


class ApiKeyGuard:
    """401 on guarded routes without `Authorization: Bearer <key>`."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self._expected = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(_GUARDED):
            given = next(
                (value for name, value in scope["headers"] if name == b"authorization"), b""
            )
            if not hmac.compare_digest(given, self._expected):  # takes as long wherever they differ
                error = ApiError(
                    401,
                    "Authorization must be 'Bearer' and the key of this server",
                    code="invalid_api_key",
                )
                error.headers["WWW-Authenticate"] = "Bearer"
                return await refuse(scope["path"], error)(scope, receive, send)
        await self.app(scope, receive, send)


class BodyReader:
    """Reads the body before the route does: 413 beyond `most` bytes, 408 if it does not come.

    400 for a body with two lengths, Content-Length and Transfer-Encoding. A proxy in front may believe the other one and
    take the rest of this body for the next request (request smuggling).
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:
            error = ApiError(400, "Content-Length must not come with Transfer-Encoding")
            error.headers["Connection"] = "close"  # where the next request begins is unknown
            return await refuse(scope["path"], error)(scope, receive, send)
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self.app(scope, receive, send)
        declared = headers.get("content-length", "0")
        try:
            # What is far too large is not even waited for.
            body = (
                None
                if declared.isdigit() and int(declared[:18]) > _DISCARDED * self._most
                else await asyncio.wait_for(self._read(receive), _BODY_SECONDS)
            )
        except TimeoutError:
            error = ApiError(408, f"the body did not arrive within {_BODY_SECONDS:g} s")
            return await refuse(scope["path"], error)(scope, receive, send)
        except ConnectionAbortedError:
            return None
        if body is None:
            error = ApiError(413, f"the body must be <= {self._most} bytes")
            return await refuse(scope["path"], error)(scope, receive, send)
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self.app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionAbortedError
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size <= self._most:
                parts.append(part)
            elif size > _DISCARDED * self._most:
                return None
        return b"".join(parts) if size <= self._most else None
