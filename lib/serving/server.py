"""The process: a socket, an event loop, an engine thread, and signals. Exits 0 after a signal, 1 on failure.

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

from lib.core.open_files import allow_open_files
from lib.engine.llm import LLM
from lib.serving.app import create_app
from lib.serving.logs import configure, log
from lib.serving.server_options import ServerOptions
from lib.serving.service import Service

_CONNECTIONS = 4096  # clients at once, most of them waiting; systems often allow 1,024 files
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
    if (too_few := allow_open_files(_CONNECTIONS)) is not None:
        log("few connections", logging.WARNING, reason=too_few)
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
    if not service.async_llm.stop(_CLOSING):
        sys.stderr.flush()
        os._exit(status)  # a step that does not end: a thread in native code cannot be stopped
    return status


async def _serve(service: Service, sock: socket.socket) -> int:
    loop, async_llm, options = asyncio.get_running_loop(), service.async_llm, service.options
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
    async_llm.start()
    serving = asyncio.ensure_future(server.serve(sockets=[sock]))
    log(
        "listening",
        url=f"http://{f'[{host}]' if ':' in host else host}:{port}",
        model=service.model_name,
    )
    loading = asyncio.ensure_future(_announce(service))
    died = asyncio.ensure_future(async_llm.dead.wait())
    signalled = asyncio.ensure_future(signals.get())
    await asyncio.wait({serving, died, signalled}, return_when=asyncio.FIRST_COMPLETED)
    if signalled.done():
        log(
            "draining",
            signal=signal.Signals(signalled.result()).name,
            in_flight=async_llm.in_flight,
        )
        again = asyncio.ensure_future(signals.get())  # a second signal ends the patience
        draining = asyncio.ensure_future(async_llm.drain(options.drain_timeout))
        await asyncio.wait({draining, again, died}, return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            draining.cancel()
            await async_llm.drain(0)
        again.cancel()
    elif died.done() and async_llm.ready.is_set():
        await asyncio.sleep(_LAST_WORDS)
    status = 0 if signalled.done() and not async_llm.dead.is_set() else 1
    for task in (loading, died, signalled):
        task.cancel()
    service.close()
    server.should_exit = True
    await serving
    log("stopped", status=status)
    return status


async def _announce(service: Service) -> None:
    await service.async_llm.ready.wait()
    llm, stats = service.llm, service.async_llm.stats
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
