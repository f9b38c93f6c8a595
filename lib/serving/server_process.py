"""The server as a child process, for chapters, load tests and tests. Introduced in chapter 5."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


class ServerProcess:
    """`with ServerProcess("--model", "smollm2") as server:` starts it on a free port and waits until it is ready.

    `arguments` are the command line's. `url` is http://host:port. `command` stands in for `python -m lib.serving`,
    `environment` adds variables.
    Leaving the block sends SIGTERM, and SIGKILL where that does not help. On Linux with setpriv (util-linux) the server
    is also killed, without draining, when this process ends in any other way. Raises RuntimeError, with the end of the
    log, if the server does not get ready within `startup_timeout` seconds, and ValueError for a --log-level at which it
    does not say where it listens.
    """

    def __init__(
        self,
        *arguments: str,
        startup_timeout: float = 300.0,
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        level = next((b for a, b in zip(arguments, arguments[1:]) if a == "--log-level"), "info")
        if level not in ("debug", "info"):
            raise ValueError(
                f"--log-level must be debug or info, because the log names the server's port, got {level!r}"
            )
        self.command = [
            *(command or (sys.executable, "-m", "lib.serving")),
            "--port",
            "0",
            *arguments,
        ]
        self.startup_timeout, self.url, self.returncode = startup_timeout, "", None
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> ServerProcess:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop(timeout=2)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        """Start it, and return as soon as it listens: its engine may still be loading. Leaves nothing behind on failure."""
        self._log = tempfile.NamedTemporaryFile(prefix="serving-", suffix=".log", delete=False)
        # To Linux the parent is the thread that starts a process, so a thread of its own does, and stays until `stop`.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="starts-server")
        try:
            self._process = self._starter.submit(self._spawn).result()
            deadline = time.monotonic() + self.startup_timeout
            while not self.url:
                self._check(deadline, "listen")
                self.url = next(
                    (line["url"] for line in self.log() if line.get("event") == "listening"), ""
                )
        except BaseException:
            self.stop(timeout=2)
            raise

    def _spawn(self) -> subprocess.Popen:
        return subprocess.Popen(
            [*_killed_with_parent(), *self.command],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=self._environment,
            cwd=Path(__file__).parents[2],
        )

    def wait_ready(self) -> None:
        deadline = time.monotonic() + self.startup_timeout
        while True:
            try:
                with urllib.request.urlopen(self.url + "/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                self._check(deadline, "get ready")

    def log(self) -> list[dict[str, Any]]:
        """Its log so far, parsed; lines that are not the server's own come as {"text": ...}."""
        lines = []
        for text in Path(self._log.name).read_text(errors="replace").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                lines.append({"text": text})
        return [line if isinstance(line, dict) else {"text": str(line)} for line in lines]

    def signal(self, number: int = signal.SIGTERM) -> None:
        self._process.send_signal(number)

    def wait(self, timeout: float) -> int:
        """Its exit status. Raises subprocess.TimeoutExpired."""
        self.returncode = self._process.wait(timeout)
        return self.returncode

    def stop(self, timeout: float = 45.0) -> int | None:
        """End it and forget its log. Returns its exit status, None if it never started."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.terminate()
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self.wait(10)
        self._starter.shutdown()
        self._log.close()
        Path(self._log.name).unlink(missing_ok=True)
        return self.returncode

    def _check(self, deadline: float, what: str) -> None:
        status = self._process.poll()
        if status is not None or time.monotonic() > deadline:
            tail = "\n".join(json.dumps(line) for line in self.log()[-10:])
            raise RuntimeError(
                f"the server did not {what}: "
                f"{'it is still trying' if status is None else f'it exited with {status}'}\n{tail}"
            )
        time.sleep(0.05)


def _killed_with_parent() -> tuple[str, ...]:
    """What to put before a command so that Linux kills it when the thread that started it ends; () elsewhere."""
    setpriv = shutil.which("setpriv")  # it execs the command, so the process id stays
    return (setpriv, "--pdeathsig", "KILL") if setpriv and sys.platform == "linux" else ()
