"""From start to end: loading, draining, failing, and the exit status of each."""

from __future__ import annotations

import inspect
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from lib import LLM
from lib.serving.server_options import parse
from lib.serving.server_process import ServerProcess
from tests.serving_failing import DIE, FAIL_ALWAYS, FAIL_ONCE, STALL
from tests.serving_support import gauges, idle, sse, start, wait_until

pytest_plugins = ["tests.serving_fixtures"]

LONG = {"prompt": "x", "max_tokens": 250, "ignore_eos": True}


def test_loading_then_draining(checkpoint) -> None:
    """503 while loading; after SIGTERM running requests finish, new ones get 503, and the process ends with 0."""
    process = start(checkpoint, "--drain-timeout", "60")
    process.start()
    with ThreadPoolExecutor(2) as pool, httpx.Client(base_url=process.url, timeout=60) as client:
        health = client.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "loading"})
        refused = client.post("/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503 and "Retry-After" in refused.headers
        process.wait_ready()
        whole = pool.submit(client.post, "/v1/completions", json=LONG)
        streamed = pool.submit(
            lambda: sse(client.post("/v1/completions", json={**LONG, "stream": True}))
        )
        wait_until(lambda: not idle(client))
        events = httpx.stream("GET", process.url + "/engine/events", timeout=60)
        with events as watched:  # a page that is open must not hold the process
            next(watched.iter_lines())
            process.signal(signal.SIGTERM)
            wait_until(lambda: client.get("/health").json() == {"status": "draining"}, 2)
            assert client.get("/health").status_code == 503
            refused = client.post("/v1/completions", json={"prompt": "x"})
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "draining"
            assert whole.result().json()["usage"]["completion_tokens"] == 250
            assert (
                streamed.result()[-1] == "[DONE]"
                and streamed.result()[-2]["choices"][0]["finish_reason"] == "length"
            )
            children = psutil.Process(process.pid).children(recursive=True)
            assert process.wait(60) == 0
    assert not [child for child in children if child.is_running()]
    assert process.stop() == 0


def test_a_drain_has_an_end(checkpoint) -> None:
    with (
        start(checkpoint, "--drain-timeout", "0.3") as process,
        ThreadPoolExecutor(2) as pool,
        httpx.Client(base_url=process.url, timeout=60) as client,
    ):
        body = {**LONG, "max_tokens": 2000, "n": 8}
        whole = pool.submit(client.post, "/v1/completions", json=body)
        streamed = pool.submit(
            lambda: sse(client.post("/v1/completions", json={**body, "stream": True}))
        )
        wait_until(lambda: not idle(client))
        time.sleep(0.5)
        process.signal(signal.SIGTERM)
        assert whole.result().status_code == 503
        assert streamed.result()[-2]["error"]["code"] == "draining"
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def failing(checkpoint):
    with start(checkpoint, "--max-num-seqs", "4", module="tests.serving_failing") as process:
        yield process


def test_a_failed_step_ends_its_requests_and_no_others(failing) -> None:
    with httpx.Client(base_url=failing.url, timeout=60) as client, ThreadPoolExecutor(6) as pool:
        running = [
            pool.submit(
                lambda: sse(
                    client.post(
                        "/v1/completions", json={**LONG, "max_tokens": 2040, "stream": True}
                    )
                )
            )
            for _ in range(3)
        ]
        wait_until(lambda: gauges(client)["num_requests_running"] == 3)
        bad = client.post("/v1/completions", json={"prompt": [FAIL_ONCE] * 2})
        assert bad.status_code == 500 and bad.json()["error"]["code"] == "engine_error"
        assert "secret" not in bad.text
        for future in running:  # they were in that step
            *_, error, done = future.result()
            assert (
                error["error"]["code"] == "engine_error"
                and done == "[DONE]"
                and "secret" not in str(error)
            )
        good = client.post(
            "/v1/completions", json={"prompt": "x", "max_tokens": 5, "ignore_eos": True}
        )
        assert good.json()["usage"]["completion_tokens"] == 5
        assert client.get("/health").status_code == 200 and idle(client)


def test_health_answers_while_a_step_hangs(failing) -> None:
    with httpx.Client(base_url=failing.url, timeout=60) as client, ThreadPoolExecutor(1) as pool:
        stalled = pool.submit(
            client.post, "/v1/completions", json={"prompt": [STALL] * 2, "max_tokens": 1}
        )
        time.sleep(0.5)
        began = time.monotonic()
        assert client.get("/health").status_code == 200
        assert time.monotonic() - began < 0.5
        assert stalled.result().status_code == 200


def test_an_engine_beyond_help_ends_the_process(failing) -> None:
    """The last test with this server: three failed steps in a row."""
    with httpx.Client(base_url=failing.url, timeout=60) as client, ThreadPoolExecutor(4) as pool:
        statuses = list(
            pool.map(
                lambda prompt: client.post("/v1/completions", json={"prompt": prompt}).status_code,
                [[FAIL_ALWAYS] * 2, [5, 6], [5, 6]],
            )
        )
        assert set(statuses) <= {500, 503}
        try:
            while (
                client.get("/health").json()["status"] != "dead"
            ):  # one at a time, so that each is a step
                client.post("/v1/completions", json={"prompt": [5, 6]})
            assert client.get("/health").status_code == 503
        except httpx.TransportError:
            pass  # it has gone already
    assert failing.wait(60) == 1
    assert any(line.get("event") == "engine died" for line in failing.log())


def test_an_engine_thread_that_ends_ends_the_process(checkpoint) -> None:
    with start(checkpoint, module="tests.serving_failing") as process:
        response = httpx.post(
            process.url + "/v1/completions", json={"prompt": [DIE] * 2}, timeout=30
        )
        assert response.status_code == 503
        assert httpx.get(process.url + "/health").json() == {"status": "dead"}
        assert process.wait(60) == 1


@pytest.mark.parametrize(
    ("arguments", "says"), [([], "config.json"), (["--scheduler", "best"], "scheduler must be")]
)
def test_what_cannot_be_loaded_ends_with_1(tmp_path, arguments: list[str], says: str) -> None:
    process = start(tmp_path, *arguments)
    process.start()
    assert process.wait(60) == 1
    (line,) = [line for line in process.log() if line.get("event") == "engine died"]
    assert says in line["reason"] and "traceback" not in line
    process.stop()


def test_a_port_in_use_ends_with_1(server, checkpoint) -> None:
    port = server.url.rsplit(":", 1)[1]
    process = start(checkpoint, "--port", port)
    with pytest.raises(RuntimeError, match="exited with 1"):
        process.start()
    assert any(line.get("event") == "cannot listen" for line in process.log())
    process.stop()


@pytest.mark.skipif(
    shutil.which("setpriv") is None, reason="needs setpriv, to have the child die with its parent"
)
def test_a_parent_that_is_killed_leaves_no_server(checkpoint, tmp_path) -> None:
    script = (
        "import os, sys, time\nfrom pathlib import Path\nfrom lib.serving.server_process import ServerProcess\n"
        "server = ServerProcess('--model', sys.argv[1], '--device', 'cpu')\nserver.start()\n"
        "Path(sys.argv[2]).write_text(str(server.pid))\ntime.sleep(120)\n"
    )
    pid_file = tmp_path / "pid"
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(checkpoint), str(pid_file)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)},
    )
    try:
        wait_until(lambda: pid_file.exists() and pid_file.read_text(), 60)
        child = psutil.Process(int(pid_file.read_text()))
    finally:
        parent.kill()
        parent.wait(10)
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 45)


def test_a_server_that_would_not_log_its_port_is_not_started() -> None:
    with pytest.raises(ValueError, match="--log-level must be debug or info.*'warning'"):
        ServerProcess("--log-level", "warning")


def test_every_argument_of_the_llm_is_a_flag() -> None:
    names = set(inspect.signature(LLM.__init__).parameters) - {"self"}
    options = parse(["--model", "gpt2", "--num-blocks", "7"])
    assert set(options.llm) == names
    defaults = {
        n: p.default for n, p in inspect.signature(LLM.__init__).parameters.items() if n != "self"
    }
    assert options.llm == {**defaults, "model": "gpt2", "num_blocks": 7}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "70000"],
        ["--max-concurrent-requests", "0"],
        ["--drain-timeout", "nan"],
        ["--request-timeout", "-1"],
        ["--max-num-seqs", "many"],
        ["--what"],
    ],
)
def test_bad_arguments_exit_with_2(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as exit:
        parse(arguments)
    assert exit.value.code == 2 and "error" in capsys.readouterr().err
