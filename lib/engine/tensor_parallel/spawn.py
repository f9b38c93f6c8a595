"""Starts the other ranks as child processes, and finds out why one has ended. Introduced in chapter 13."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from lib.core.engine_options import EngineOptions
from lib.engine.tensor_parallel.worker import LOST_PEER, settings_of

HOST = "127.0.0.1"
_ROOT = Path(__file__).resolve().parents[3]
_TO_END = 5.0  # seconds that a process gets to end by itself


class SpawnedRanks:
    """Processes of ranks 1 to size - 1 on this machine; this process is rank 0.

    A rank ends when this process does, however that happens: it reads from a pipe that only this
    process holds open. `threads`: PyTorch's threads per rank.
    """

    host = HOST

    def __init__(
        self, options: EngineOptions, device: torch.device, size: int, threads: int
    ) -> None:
        self.size = size
        listener = socket.create_server((HOST, 0))  # no other machine can connect
        port = listener.getsockname()[1]
        self.store: dist.Store = dist.TCPStore(
            HOST,
            port,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
        self.processes: dict[int, subprocess.Popen[str]] = {}
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path}
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), str(threads))
        try:
            for rank in range(1, size):
                process = subprocess.Popen(
                    [sys.executable, "-m", "lib.engine.tensor_parallel.worker"],
                    stdin=subprocess.PIPE,
                    text=True,
                    env=environment,
                    start_new_session=True,  # Ctrl-C in a terminal goes to this process alone
                )
                self.processes[rank] = process
                here = {"rank": rank, "size": size, "threads": threads, "host": HOST, "port": port}
                settings = {**settings_of(options, device, rank), **here}
                process.stdin.write(json.dumps(settings) + "\n")
                process.stdin.flush()
        except BaseException:
            self.end()
            raise

    def why_ended(self, patience: float = 0.0) -> str | None:
        """What has ended a rank, with its traceback if it has one; None if all are alive.

        Waits up to `patience` seconds. A rank that ended because another one did is named only if
        there is no better reason by then.
        """
        deadline = time.monotonic() + patience
        while True:
            ended = {rank: p.poll() for rank, p in self.processes.items()}
            ended = {rank: status for rank, status in ended.items() if status is not None}
            for rank in self.processes:
                if self.store.check([f"error/{rank}"]):
                    text = self.store.get(f"error/{rank}").decode()
                    return f"rank {rank} failed:\n{text}"
            late = time.monotonic() >= deadline
            for rank, status in ended.items():
                if status != LOST_PEER or late:
                    return f"rank {rank} (process {self.processes[rank].pid}) {_reason(status)}"
            if late:
                return None
            time.sleep(0.05)

    def end(self) -> None:
        """End all processes; returns when they are gone."""
        for process in self.processes.values():
            try:
                process.stdin.close()
            except OSError:  # what was not yet written to a process that is dead
                pass
        deadline = time.monotonic() + _TO_END
        for process in self.processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _reason(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"
