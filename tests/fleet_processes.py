"""A fleet without Ray Serve: the front and a routing policy before plain server processes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import uvicorn
from starlette.requests import Request

from lib.serving.fleet.forwarding import ForwardedRequest
from lib.serving.fleet.front import FleetBusy, Front, ReplicaLost
from lib.serving.fleet.routing import Router


class ProcessFleet:
    """`with ProcessFleet({"a": url, "b": url}, router) as fleet:` serves at `fleet.url`, in a thread of this process.

    A server that cannot be reached, breaks off or drains is not chosen again.
    """

    def __init__(self, servers: Mapping[str, str], router: Router) -> None:
        self.servers, self.router = dict(servers), router
        self.load = dict.fromkeys(servers, 0)
        self.sent: list[
            str
        ] = []  # the server of each request, in order; a request can have several

    def __enter__(self) -> ProcessFleet:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._app, port=port, log_level="error", lifespan="off", interface="asgi3"
            )
        )
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    async def _app(self, scope, receive, send) -> None:
        front = Front(self._send, tries=3, max_body_bytes=2**20)
        response = await front.answer(Request(scope, receive))
        await response(scope, receive, send)

    async def _send(self, request: ForwardedRequest) -> AsyncIterator[dict[str, Any]]:
        if not self.load:
            raise FleetBusy("no replica is running")
        chosen = self.router.choose(request.names, list(self.load), self.load)
        self.load[chosen] += 1
        self.sent.append(chosen)
        try:
            async with httpx.AsyncClient(timeout=120, trust_env=False) as client:
                call = client.stream(
                    request.method,
                    self.servers[chosen] + request.path,
                    headers=[(n, v) for n, v in request.headers if n != b"host"],
                    content=request.body,
                )
                async with call as answer:
                    if answer.status_code == 503 and b"draining" in await answer.aread():
                        raise ReplicaLost(f"{chosen} drains")
                    head = {"status": answer.status_code, "headers": answer.headers.raw}
                    yield {"type": "http.response.start", **head}
                    async for part in answer.aiter_raw():
                        yield {"type": "http.response.body", "body": part, "more_body": True}
                    yield {"type": "http.response.body", "body": b"", "more_body": False}
        except (httpx.TransportError, ReplicaLost) as error:
            self.load.pop(chosen, None)
            self.router.forget(chosen)
            raise ReplicaLost(f"{chosen}: {error!r}") from error
        finally:
            if chosen in self.load:
                self.load[chosen] -= 1
