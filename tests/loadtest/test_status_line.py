"""The live line in a terminal."""

from __future__ import annotations

import io
import threading

from lib.loadtest.client import Target
from lib.loadtest.requests import make_requests
from lib.loadtest.run import closed_loop
from lib.loadtest.status_line import StatusLine
from tests.load_fake_server import FakeServer, Plan


def test_the_live_line():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal, plain = Terminal(), io.StringIO()
    lines = [StatusLine(terminal, "2 users"), StatusLine(plain, "2 users")]
    with FakeServer(lambda i, body: Plan(ttft=0.2, gap=0.05, tokens=3)) as fake:
        threads = []
        closed_loop(
            Target(fake.url),
            make_requests("short", 6, max_tokens=3),
            2,
            watcher=lambda session: (
                threads.append(threading.current_thread().name),
                [line(session) for line in lines],
            ),
        )
    lines[0].close()
    assert (
        "2 users: " in terminal.getvalue()
        and "/6 done" in terminal.getvalue()
        and "TTFT p50" in terminal.getvalue()
    )
    assert terminal.getvalue().endswith("\r\x1b[K") and plain.getvalue() == ""
    assert set(threads) == {"load-generator"}
