"""The process: a socket, an event loop, an engine thread, signals, and an exit status that tells the truth.

Introduced in chapter 5.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn

from lib.engine.llm import LLM
from lib.serving.app import create_app
from lib.serving.logs import configure, log
from lib.serving.server_options import ServerOptions
from lib.serving.service import Service

_LAST_WORDS = 1.5  # seconds that /health still answers 503 after the engine died
_CLOSING = 5.0  # seconds that connections get to close, and the engine to end its step


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which stop listening at once: a draining server still has to say 503."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(options: ServerOptions, make_llm: Callable[[], LLM] | None = None) -> int:
    """Serve until SIGTERM, SIGINT or the engine's death. Returns 0 after a signal, else 1.

    `make_llm` stands in for `LLM(**options.llm)`.
    """
    configure(options.log_level)
    try:
        sock = _bind(options.host, options.port)
    except OSError as error:
        log(
            "cannot listen",
            logging.ERROR,
            host=options.host,
            port=options.port,
            reason=error.strerror or str(error),
        )
        return 1
    service = Service(options, make_llm or (lambda: LLM(**options.llm)))
    status = asyncio.run(_serve(service, sock))
    if not service.engine.stop(_CLOSING):
        sys.stderr.flush()
        os._exit(
            status
        )  # a step that does not end; a thread inside native code cannot be stopped otherwise
    return status


async def _serve(service: Service, sock: socket.socket) -> int:
    loop, engine, options = asyncio.get_running_loop(), service.engine, service.options
    host, port = sock.getsockname()[:2]
    server = _Server(
        uvicorn.Config(
            create_app(service),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=int(_CLOSING),
        )
    )
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    engine.start()
    serving = asyncio.ensure_future(server.serve(sockets=[sock]))
    log(
        "listening",
        url=f"http://{f'[{host}]' if ':' in host else host}:{port}",
        model=service.model_name,
    )
    loading = asyncio.ensure_future(_announce(service))
    signalled = asyncio.ensure_future(signals.get())
    await asyncio.wait({serving, engine.ended, signalled}, return_when=asyncio.FIRST_COMPLETED)
    if signalled.done():
        log("draining", signal=signal.Signals(signalled.result()).name, in_flight=engine.in_flight)
        again = asyncio.ensure_future(signals.get())  # a second signal ends the patience
        draining = asyncio.ensure_future(engine.drain(options.drain_timeout))
        await asyncio.wait({draining, again, engine.ended}, return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            draining.cancel()
            await engine.drain(0)
        again.cancel()
    elif engine.ended.done() and engine.ready.is_set():
        await asyncio.sleep(_LAST_WORDS)
    loading.cancel()
    service.feed.close()
    server.should_exit = True
    await serving
    if service.tokens is not None:
        service.tokens.close()
    status = 1 if engine.ended.done() or not signalled.done() else 0
    log("stopped", status=status)
    return status


async def _announce(service: Service) -> None:
    await service.engine.ready.wait()
    llm, stats = service.engine.llm, service.engine.stats
    log(
        "ready",
        model=service.model_name,
        weights=llm.weights,
        device=str(llm.device),
        dtype=str(llm.dtype),
        max_model_len=llm.max_model_len,
        blocks=stats["blocks_total"],
        block_size=stats["block_size"],
    )


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named; without it each answer waits 40 ms for an ACK (Nagle).
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.set_inheritable(False)
    except OSError:
        sock.close()
        raise
    return sock
