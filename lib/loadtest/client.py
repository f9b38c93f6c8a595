"""One request over HTTP, read as it streams. Works with any OpenAI-compatible server. Introduced in chapter 6."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from lib.loadtest.request_trace import COMPLETED, FAILED, REJECTED, TIMEOUT, RequestTrace

_CONNECT_TIMEOUT = 10.0


@dataclass(frozen=True)
class Target:
    """The server, what its requests have in common, and the time limits.

    timeout: seconds that one request may take. stall_timeout: seconds of silence from the whole server, with requests
    in flight, after which the run ends. Raises ValueError for a URL that is not http(s) and for times not above 0.
    """

    url: str
    model: str | None = None
    ignore_eos: bool = True
    api_key: str | None = None
    timeout: float = 600.0
    stall_timeout: float = 120.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url must look like http://host:port, got {self.url!r}")
        for name in ("timeout", "stall_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0 seconds, got {getattr(self, name)}")

    @property
    def base(self) -> str:
        """The URL without a trailing / or /v1, with which some write it."""
        return self.url.rstrip("/").removesuffix("/v1").rstrip("/")

    def http(self) -> httpx.AsyncClient:
        """No limit on connections: the server's limits are what is measured. No proxy either."""
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        # Idle connections are dropped before the server closes them (uvicorn: after 5 s): a request on a closed one fails.
        limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0
        )
        return httpx.AsyncClient(
            headers=headers,
            limits=limits,
            trust_env=False,
            timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT),
        )


class ServerGone(Exception):
    """Nothing listens at the URL: further requests are pointless."""


class StreamError(Exception):
    """The answer does not follow the protocol; the message says how."""


async def send(
    http: httpx.AsyncClient,
    target: Target,
    body: bytes,
    trace: RequestTrace,
    clock: Callable[[], float],
    heard: Callable[[], None] = lambda: None,
) -> None:
    """Send one request and write into `trace` what happens.

    `heard` is called whenever bytes arrive. Raises ServerGone, with the trace complete,
    if nothing listens at the URL. The code that cancels it sets the outcome.
    """
    url = f"{target.base}/v1/completions"
    trace.sent = clock()
    try:
        async with (
            asyncio.timeout(target.timeout),
            http.stream("POST", url, content=body) as response,
        ):
            trace.status = status = response.status_code
            heard()
            if status != 200:
                trace.outcome = REJECTED if status in (429, 503) else FAILED
                trace.error = f"HTTP {status}: {_message(await response.aread())}"
                return
            await _read(response, trace, clock, heard)
            trace.outcome = COMPLETED
    except (TimeoutError, httpx.ConnectTimeout) as error:
        connecting = isinstance(error, httpx.ConnectTimeout)
        waited = _CONNECT_TIMEOUT if connecting else target.timeout
        trace.outcome = TIMEOUT
        trace.error = f"no complete answer within {waited:g} s, {_progress(trace)}"
    except httpx.ConnectError as error:
        trace.outcome = FAILED
        trace.error = f"cannot connect to {target.base}: {error}"
        raise ServerGone(trace.error) from None
    except httpx.HTTPError as error:
        trace.outcome = FAILED
        reason = error if str(error) else type(error).__name__
        trace.error = f"connection lost {_progress(trace)}: {reason}"
    except StreamError as error:
        trace.outcome, trace.error = FAILED, f"{error}, {_progress(trace)}"
    finally:
        trace.end = clock()
        if not trace.counted:
            trace.output_tokens = len(trace.chunks)


async def _read(
    response: httpx.Response,
    trace: RequestTrace,
    clock: Callable[[], float],
    heard: Callable[[], None],
) -> None:
    """Note each event with output. Events that the network brings together get the same time: they came together."""
    events, done = EventReader(), False
    async for data in response.aiter_raw():
        now = clock()
        heard()
        for payload in events.feed(data):
            if payload == "[DONE]":
                done = True
                continue
            _note(payload, trace, now)
    if not trace.chunks:
        raise StreamError("the answer holds no completion: is this the right URL?")
    if not done and trace.finish_reason is None:
        raise StreamError("the stream ended before the answer did")


def _note(payload: str, trace: RequestTrace, now: float) -> None:
    try:
        event: dict[str, Any] = json.loads(payload)
        choices, usage = event.get("choices"), event.get("usage")
        if event.get("error"):  # too late for a status
            raise StreamError(f"the server reports: {_message(payload.encode())}")
        if choices:
            trace.chunks.append(now)
            trace.finish_reason = choices[0].get("finish_reason") or trace.finish_reason
        if usage:
            trace.output_tokens, trace.prompt_tokens = (
                usage["completion_tokens"],
                usage.get("prompt_tokens"),
            )
            trace.counted = True
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise StreamError(f"an event is not what OpenAI's protocol has ({error!r})") from None


class EventReader:
    """Splits a byte stream into the data of server-sent events, wherever the network cut it."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[str]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip().decode("utf-8", "replace")


def _progress(trace: RequestTrace) -> str:
    return f"after {len(trace.chunks)} chunks of output"


def _message(body: bytes) -> str:
    """The error's message, in OpenAI's form or any other, on one line of at most 200 characters."""
    text = body.decode("utf-8", "replace")
    try:
        error = json.loads(text)["error"]
        text = error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(text.split())[:200]
