"""A server that does exactly what a test's script says, with known delays. It speaks HTTP by itself: no framework's
buffering, limits or threads come between the script and the socket."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass


@dataclass
class Plan:
    """The answer to one request. Delays in seconds.

    per_chunk: tokens in an event. lump: events in one write. die_after: events after which the connection is cut.
    hang_after: events after which nothing more comes. usage: whether the counts are sent.
    """

    status: int = 200
    ttft: float = 0.05
    gap: float = 0.05
    tokens: int = 4
    per_chunk: int = 1
    lump: int = 1
    die_after: int | None = None
    hang_after: int | None = None
    error_after: int | None = None
    usage: bool = True
    done: bool = True


class FakeServer:
    """`with FakeServer(plan) as server:`; `plan(i, body)` returns the Plan of the i-th completion request.

    capacity: beyond so many requests at a time, 503. serial: one at a time, the others wait, in order.
    """

    def __init__(
        self,
        plan: Callable[[int, dict], Plan] = lambda i, body: Plan(),
        capacity: int | None = None,
        serial: bool = False,
        metrics: str | None = None,
    ) -> None:
        self.plan, self.capacity, self.metrics = plan, capacity, metrics
        self.bodies: list[dict] = []
        self.in_flight = self.peak = self.refused = 0
        self._serial = serial
        self._writers: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> FakeServer:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._thread.join(10)

    def kill(self) -> None:
        """Cut every connection and stop listening, as a dead process does."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._die)

    def _die(self) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        self._stop.set()

    async def _main(self, ready: threading.Event) -> None:
        self._loop, self._stop, self._lock = (
            asyncio.get_running_loop(),
            asyncio.Event(),
            asyncio.Lock(),
        )
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=512)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        ready.set()
        await self._stop.wait()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(
                    (
                        int(line.split(":")[1])
                        for line in head.split("\r\n")
                        if line.lower().startswith("content-length")
                    ),
                    0,
                )
                body = await reader.readexactly(length)
                await self._answer(head.split()[1], body, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if path == "/metrics" and self.metrics is not None:
            return _whole(writer, 200, self.metrics.encode())
        if path == "/v1/models":
            return _whole(writer, 200, b'{"data": [{"id": "fake"}]}')
        if path != "/v1/completions":
            return _whole(writer, 404, b"no such path")
        self.bodies.append(json.loads(body))
        plan = self.plan(len(self.bodies) - 1, self.bodies[-1])
        if self.capacity is not None and self.in_flight >= self.capacity:
            self.refused += 1
            return _whole(writer, 503, b'{"error": {"message": "full"}}')
        if plan.status != 200:
            return _whole(writer, plan.status, b'{"error": {"message": "as scripted"}}')
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            if self._serial:
                async with self._lock:
                    await self._stream(plan, writer)
            else:
                await self._stream(plan, writer)
        finally:
            self.in_flight -= 1

    async def _stream(self, plan: Plan, writer: asyncio.StreamWriter) -> None:
        start = self._loop.time()
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        events = -(-plan.tokens // plan.per_chunk)
        pending = b""
        for i in range(events):
            await asyncio.sleep(
                max(0.0, start + plan.ttft + i * plan.gap - self._loop.time())
            )  # no drift
            if i == plan.die_after:
                writer.transport.abort()
                raise ConnectionError("as scripted")
            if i == plan.hang_after:
                await asyncio.sleep(3600)
            if i == plan.error_after:
                _chunk(writer, _event({"error": {"message": "out of luck"}}) + b"data: [DONE]\n\n")
                return _chunk(writer, b"")
            last = i == events - 1
            pending += _event(
                {
                    "choices": [
                        {
                            "index": 0,
                            "text": " word" * plan.per_chunk,
                            "finish_reason": "length" if last and plan.done else None,
                        }
                    ],
                    "usage": None,
                }
            )
            if last or (i + 1) % plan.lump == 0:
                _chunk(writer, pending)
                pending = b""
        if plan.usage:
            _chunk(
                writer,
                _event(
                    {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": plan.tokens}}
                ),
            )
        if plan.done:
            _chunk(writer, b"data: [DONE]\n\n")
        _chunk(writer, b"")


def _event(payload: dict) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))


def _whole(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
