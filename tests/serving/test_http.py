"""HTTP below the OpenAI protocol: framing, methods, paths, slow readers. Raw sockets where clients would not do it."""

from __future__ import annotations

import asyncio
import json
import socket
from urllib.parse import urlsplit

import httpx
import pytest

from lib.serving.page_feed import MAX_WATCHERS
from tests.serving_support import idle, wait_until

pytest_plugins = ["tests.serving_fixtures"]


def exchange(url: str, request: bytes, seconds: float = 10) -> bytes:
    """All that comes back until the server closes. Raises TimeoutError if it does not."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout=seconds) as connection:
        connection.sendall(request)
        received = b""
        while data := connection.recv(65536):
            received += data
        return received


@pytest.mark.parametrize(
    "length", [b"Content-Length: 5\r\n", b"content-length: 0\r\n"], ids=["five", "zero"]
)
@pytest.mark.parametrize("route", [b"POST /v1/completions", b"GET /health"], ids=["post", "get"])
def test_a_body_with_two_lengths_is_refused(server, route: bytes, length: bytes) -> None:
    """And the connection ends: whether what follows is a request or a body is not known."""
    answer = exchange(
        server.url,
        route + b" HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + length
        # neither a whole body by its length, nor by its chunks
        + b"Transfer-Encoding: chunked\r\n\r\n4\r\n{}",
    )  # fmt: skip
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400") and b"connection: close" in head.lower()
    assert "Transfer-Encoding" in json.loads(body)["error"]["message"]


def test_the_rest_of_a_refused_body_is_no_request(server) -> None:
    smuggled = b"0\r\n\r\nGET /version HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = exchange(
        server.url,
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n%s" % (len(smuggled), smuggled),
    )
    assert answer.count(b"HTTP/1.1 ") == 1 and b'"version"' not in answer


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health/"),
        ("GET", "/metrics/"),
        ("GET", "/v1/models/"),
        ("POST", "/v1/completions/"),
        ("POST", "/v1/chat/completions/"),
        ("GET", "/static"),
        ("GET", "/static/"),
        ("GET", "/static/app.js/"),
    ],
)
def test_a_slash_too_many_is_no_redirect(client: httpx.Client, method: str, path: str) -> None:
    response = client.request(
        method,
        path,
        headers={"Host": "evil.example"},
        json={"prompt": "x"} if method == "POST" else None,
    )
    assert response.status_code == 404 and "location" not in response.headers
    assert "evil" not in response.text and response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/health", "/", "/metrics", "/v1/models", "/static/app.js"])
def test_head_is_get_without_the_body(client: httpx.Client, path: str) -> None:
    got, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (200, b"") and got.content
    assert head.headers["content-type"] == got.headers["content-type"]
    if path != "/metrics":  # whose text may grow from one to the other
        assert head.headers["content-length"] == got.headers["content-length"]


def test_no_more_watchers_than_the_limit(server, client: httpx.Client) -> None:
    """Also where they come all at once."""

    async def work() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=30) as http:
            requests = [http.build_request("GET", "/engine/events") for _ in range(40)]
            answers = await asyncio.gather(*(http.send(r, stream=True) for r in requests))
            statuses = [answer.status_code for answer in answers]
            for answer in answers:
                await answer.aclose()
            assert (statuses.count(200), statuses.count(503)) == (MAX_WATCHERS, 40 - MAX_WATCHERS)

    asyncio.run(work())

    def there_is_room() -> bool:
        with client.stream("GET", "/engine/events") as response:
            return response.status_code == 200

    wait_until(there_is_room, 10, "room for a watcher")


def test_a_client_that_reads_late_gets_everything(server, client: httpx.Client) -> None:
    """The server goes on without it and keeps what it has not read."""
    body = {"prompt": "x", "max_tokens": 2000, "n": 4, "ignore_eos": True, "stream": True}
    text = json.dumps({**body, "logprobs": 5, "return_token_ids": True}).encode()
    where = urlsplit(server.url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(60)
    with connection:
        connection.connect((where.hostname, where.port))
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text)
        )
        assert connection.recv(12) == b"HTTP/1.1 200"
        wait_until(lambda: idle(client), 60, "the end of the generation")
        received = b""
        while data := connection.recv(2**20):
            received += data
    tokens, reasons = [0] * 4, []
    for line in unchunked(received).split(b"\n"):
        if line.startswith(b"data: {"):
            (choice,) = json.loads(line[6:])["choices"]
            tokens[choice["index"]] += len(choice["token_ids"])
            assert len(choice["logprobs"]["tokens"]) == len(choice["token_ids"])
            reasons += [choice["finish_reason"]] * (choice["finish_reason"] is not None)
    assert (tokens, reasons) == ([2000] * 4, ["length"] * 4)


def unchunked(response: bytes) -> bytes:
    _, _, rest = response.partition(b"\r\n\r\n")
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body
