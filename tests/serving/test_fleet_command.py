"""The fleet as a user starts it: by its command, and by a config file of Ray Serve. Each has a Ray cluster of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import yaml

from lib.bench.paths import repository
from tests.fleet_ray import ENGINE, free_port, needs_ray

pytestmark = needs_ray

QUESTION = {"prompt": [5, 6, 7], "max_tokens": 6, "temperature": 0, "ignore_eos": True, "return_token_ids": True}  # fmt: skip


@contextmanager
def process_of(command, log: Path):
    """The process. Killed at the end with its Ray cluster, if they still run."""
    environment = {**os.environ, "PYTHONPATH": str(repository()), "RAY_USAGE_STATS_ENABLED": "0"}
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=repository(), env=environment, stdout=file, stderr=file)  # fmt: skip
    try:
        yield process
    finally:
        children = []
        if process.poll() is None:
            children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        for child in children:
            if child.is_running():
                child.kill()


def wait_ready(process, url, log: Path):
    deadline = time.monotonic() + 300
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        try:
            if httpx.get(url + "/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)


def engines_of(process):
    """Processes of the engine's replicas in this process's cluster."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if ":Engine" in " ".join(child.cmdline()):
                found.append(child)
    return found


def answer_of(url):
    return httpx.post(url + "/v1/completions", json=QUESTION, timeout=120).json()["choices"][0]["token_ids"]  # fmt: skip


def test_the_command_serves_and_ends_with_a_signal(llama, tmp_path):
    port = free_port()
    options = {**ENGINE, "model": llama.folder, "replicas": 1, "port": port}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "lib.serving.fleet", *flags]
    with process_of(command, tmp_path / "log") as process:
        wait_ready(process, url, tmp_path / "log")
        assert answer_of(url) == llama.greedy([5, 6, 7], 6)
        engines = engines_of(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        assert engines and not any(engine.is_running() for engine in engines)


def test_a_signal_ends_the_command_while_a_replica_still_starts(llama, tmp_path):
    flags = ["--replicas=1", f"--model={llama.folder}", f"--port={free_port()}"]
    command = [sys.executable, "-m", "lib.serving.fleet", *flags]
    with process_of(command, tmp_path / "log") as process:
        deadline = time.monotonic() + 300
        while not engines_of(process):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0, (tmp_path / "log").read_text()[-3000:]


def test_a_config_file_serves_the_same(llama, tmp_path):
    text = (repository() / "lib" / "serving" / "fleet" / "serve.yaml").read_text()
    config = yaml.safe_load(text)
    config["http_options"]["port"] = port = free_port()
    config["applications"][0]["args"] |= {**ENGINE, "model": str(llama.folder), "replicas": 1}
    (file := tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "ray.serve.scripts", "run", str(file)]
    with process_of(command, tmp_path / "log") as process:
        wait_ready(process, url, tmp_path / "log")
        assert answer_of(url) == llama.greedy([5, 6, 7], 6)
        process.send_signal(signal.SIGINT)
        process.wait(300)  # a busy machine takes minutes
