"""Decode steps on a quiet machine and beside a busy program, for several ways of OpenMP to wait.

OpenMP reads its settings when it is loaded, so each setting has a process of its own: this module, run as a program,
which measures whenever it is told to. Introduced in chapter 8.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lib.bench.paths import repository

GNU_DEFAULT = {"GOMP_SPINCOUNT": "300000"}  # libgomp's own value where nothing is set
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")


@contextmanager
def busy_program() -> Iterator[int]:
    """One program that computes without end, in a session of its own as another user's would be. Yields its id."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def step_times(
    model: str | Path,
    settings: Mapping[str, Mapping[str, str]],
    *,
    steps: int = 20,
    rounds: int = 1,
    batch: int = 1,
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each decode step: {setting: {"quiet": [...], "busy": [...]}}, settings in turns.

    settings: environment variables by name. `steps` steps per setting, state and round.
    """
    times = {name: {"quiet": [], "busy": []} for name in settings}
    workers: dict[str, subprocess.Popen[str]] = {}
    try:
        for name, setting in settings.items():
            workers[name] = _start(model, setting, batch)
        for _ in range(rounds):
            for name, worker in workers.items():
                times[name]["quiet"] += _ask(worker, steps)
            for name, worker in workers.items():
                with busy_program():
                    times[name]["busy"] += _ask(worker, steps)
    finally:
        for worker in workers.values():
            worker.kill()
            worker.communicate()
    return times


def _start(model: str | Path, setting: Mapping[str, str], batch: int) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
    worker = subprocess.Popen(
        [sys.executable, "-m", __name__, str(model), str(batch)],
        env={**environment, "PYTHONPATH": str(repository()), **setting},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    _ask(worker, 3)  # loaded and warm before the next one starts
    return worker


def _ask(worker: subprocess.Popen[str], steps: int) -> list[float]:
    worker.stdin.write(f"{steps}\n")
    worker.stdin.flush()
    answer = worker.stdout.readline()
    if not answer:
        raise RuntimeError(f"the measuring process ended with status {worker.wait()}")
    return json.loads(answer)


def _main(model: str, batch: int) -> None:
    """Reads a number of steps per line, writes the seconds of each step."""
    from lib.bench.measure.timing import timed
    from lib.core.sampling_params import SamplingParams
    from lib.engine.llm import LLM

    llm: Any = LLM(model, device="cpu", dtype="float32", max_num_seqs=batch, max_model_len=256)
    prompt = [token % llm.config.vocab_size for token in range(10, 42)]
    for line in sys.stdin:
        steps = int(line)
        params = SamplingParams(max_tokens=steps + 2, temperature=0.0, ignore_eos=True)
        ids = [llm.add_request(prompt, params) for _ in range(batch)]
        llm.step()  # the prompt
        times = []
        for _ in range(steps):
            with timed("cpu") as watch:
                llm.step()
            times.append(watch.seconds)
        print(json.dumps(times), flush=True)
        for request_id in ids:
            llm.abort(request_id)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
