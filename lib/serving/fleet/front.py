"""The fleet's front: sends each request to a replica, and to another one if that ends before the answer has begun.

It does not depend on Ray: `send` is the function that reaches a replica. Introduced in chapter 13.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from lib.serving.errors import ApiError
from lib.serving.fleet.forwarding import ForwardedRequest, names_of
from lib.serving.logs import log
from lib.serving.sse import DONE, event

Send = Callable[[ForwardedRequest], AsyncIterator[dict[str, Any]]]
# Headers of one connection, which are not forwarded (RFC 9110 7.6.1).
_HOP_BY_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"te", b"trailer", b"upgrade", b"proxy-connection"}  # fmt: skip


class ReplicaLost(Exception):
    """The replica ended, or could not be reached. `str` says which and how, for the log."""


class FleetBusy(Exception):
    """No replica can take the request now. `str` says why, for the client."""


class Front:
    """Answers HTTP requests by way of `send`, which yields a replica's ASGI messages.

    `send` raises `ReplicaLost`, `FleetBusy`, or an error of the application, which another replica would raise too. A
    request whose replica is lost is sent again, up to `tries` times, while the client has seen nothing of its answer. After
    that the client gets an error: in a stream of events as an event, with [DONE] after it. timeout: seconds until an answer
    must have begun, also where no replica runs; None is no limit.
    """

    def __init__(
        self,
        send: Send,
        tries: int,
        max_body_bytes: int,
        block_size: int = 16,
        timeout: float | None = None,
    ) -> None:
        self._send, self._tries, self._timeout = send, tries, timeout
        self._max_body, self._block_size = max_body_bytes, block_size

    async def answer(self, request: Request) -> Response:
        body = await self._body(request)
        if body is None:
            return ApiError(413, f"the body must be <= {self._max_body} bytes").response()
        forwarded = ForwardedRequest(
            request.method,
            request.url.path,
            request.scope["query_string"],
            [(n, v) for n, v in request.scope["headers"] if n.lower() not in _HOP_BY_HOP],
            body,
            names_of(body, self._block_size),
        )
        try:
            async with asyncio.timeout(self._timeout):
                return await self._answer_of_a_replica(forwarded)
        except TimeoutError:
            error = f"no answer began within {self._timeout:g} s, the limit of this server"
            return ApiError(504, error, code="timeout").response()

    async def _answer_of_a_replica(self, forwarded: ForwardedRequest) -> Response:
        for _ in range(self._tries):
            messages = self._send(forwarded)
            try:
                start = await anext(messages)
                first = await anext(messages)
            except ReplicaLost as lost:
                log("replica lost", logging.WARNING, path=forwarded.path, reason=str(lost)[:300])
                continue
            except FleetBusy as busy:
                return ApiError(503, f"{busy}: try again later", code="overloaded", retry_after=1).response()  # fmt: skip
            except StopAsyncIteration:
                return ApiError(500, "the replica gave no answer", code="engine_error").response()
            except Exception as error:
                return _report(error, forwarded.path).response()
            return await _respond(start, first, messages, forwarded.path)
        error = f"{self._tries} replicas have ended, one after the other, with this request"
        return ApiError(503, error, code="replica_lost", retry_after=5).response()

    async def _body(self, request: Request) -> bytes | None:
        """The body; None beyond the limit."""
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self._max_body:
                return None
            parts.append(part)
        return b"".join(parts)


async def _respond(
    start: dict[str, Any], first: dict[str, Any], rest: AsyncIterator[dict[str, Any]], path: str
) -> Response:
    headers = [(n.lower(), v) for n, v in start["headers"] if n.lower() not in _HOP_BY_HOP]
    if first.get("more_body", False):
        is_stream = (b"content-type", b"text/event-stream") in [(n, v.partition(b";")[0]) for n, v in headers]  # fmt: skip
        response = StreamingResponse(_bodies(first, rest, is_stream, path), start["status"])
    else:
        try:
            async for _ in rest:  # to its end, so that nothing is left to cancel
                pass
        except Exception as error:
            _report(error, path)  # the answer is complete: the client is told nothing
        response = Response(first.get("body", b""), start["status"])
    response.raw_headers = headers
    return response


async def _bodies(
    first: dict[str, Any], rest: AsyncIterator[dict[str, Any]], is_stream: bool, path: str
) -> AsyncIterator[bytes]:
    """The bodies of the messages. `rest` is closed however the iteration ends, so that the replica can stop."""
    complete = False
    async with aclosing(rest):
        yield first.get("body", b"")
        try:
            async for message in rest:
                complete = not message.get("more_body", False)
                yield message.get("body", b"")
        except Exception as error:
            answer = _report(error, path)
            if not (complete or is_stream):
                raise  # the connection is closed before its Content-Length: the client sees that
            if not complete:
                yield event(answer.body()) + DONE


def _report(error: Exception, path: str) -> ApiError:
    """Logs a replica's end, or an error in it; returns what the client is told."""
    if isinstance(error, ReplicaLost):
        log("replica lost", logging.WARNING, path=path, reason=str(error)[:300])
        return ApiError(503, "the replica has ended; what was sent so far is valid", code="replica_lost")  # fmt: skip
    log("replica failed", logging.ERROR, path=path, exc_info=error)
    return ApiError(500, "the server failed on this request; its log says why", code="engine_error")
