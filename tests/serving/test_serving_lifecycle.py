"""From start to end: loading, draining, failing, and the exit status of each."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import httpx
import psutil
import pytest

from lib.core.engine_options import EngineOptions
from lib.serving.flags import add_flags
from lib.serving.server_options import ServerOptions, parse
from lib.serving.server_process import ServerProcess
from tests.serving_failing import DIE, FAIL_ALWAYS, FAIL_ONCE, STALL
from tests.serving_support import gauges, idle, sse, start, wait_until

pytest_plugins = ["tests.serving_fixtures"]

LONG = {"prompt": "x", "max_tokens": 250, "ignore_eos": True}


def test_loading_then_draining(checkpoint) -> None:
    """503 while loading; after SIGTERM running requests finish, new ones get 503, and the process ends with 0."""
    process = start(checkpoint, "--drain-timeout", "60", module="tests.serving_failing")
    process.start()
    with ThreadPoolExecutor(2) as pool, httpx.Client(base_url=process.url, timeout=60) as client:
        health = client.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "loading"})
        refused = client.post("/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503 and "Retry-After" in refused.headers
        process.wait_ready()
        # Their first step takes seconds, so that the signal finds both running however fast the engine is.
        slow = {**LONG, "prompt": [STALL, STALL]}
        whole = pool.submit(client.post, "/v1/completions", json=slow)
        streamed = pool.submit(
            lambda: sse(client.post("/v1/completions", json={**slow, "stream": True}))
        )
        wait_until(lambda: not idle(client))
        time.sleep(0.5)  # the other one arrives: the engine takes it after the first one's step
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


def test_what_cannot_be_loaded_ends_with_1(tmp_path) -> None:
    process = start(tmp_path)
    process.start()
    assert process.wait(60) == 1
    (line,) = [line for line in process.log() if line.get("event") == "engine died"]
    assert "config.json" in line["reason"] and "traceback" not in line
    process.stop()


def test_a_port_in_use_ends_with_1(server, checkpoint) -> None:
    port = server.url.rsplit(":", 1)[1]
    process = start(checkpoint, "--port", port)
    with pytest.raises(RuntimeError, match="exited with 1") as failure:
        process.start()
    assert '"event": "cannot listen"' in str(failure.value)


@pytest.mark.parametrize(
    ("code", "says"),
    [("import time; time.sleep(60)", "still trying"), ("exit(7)", "exited with 7")],
)
def test_a_failed_start_leaves_nothing_behind(tmp_path, monkeypatch, code: str, says: str) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    process = ServerProcess(command=[sys.executable, "-c", code], startup_timeout=1.0)
    with pytest.raises(RuntimeError, match=says):
        process.start()
    assert not psutil.pid_exists(process.pid) and list(tmp_path.iterdir()) == []


def test_a_command_that_does_not_exist_leaves_nothing_behind(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)  # without setpriv in front
    with pytest.raises(FileNotFoundError):
        ServerProcess(command=["/does/not/exist"]).start()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    shutil.which("setpriv") is None, reason="needs setpriv, to have the child die with its parent"
)
@pytest.mark.parametrize("thread", ["main", "another"])
def test_a_parent_that_is_killed_leaves_no_server(checkpoint, tmp_path, thread: str) -> None:
    """Nor one that drains: a long generation runs, and the server is gone at once."""
    script = """if True:
        import sys, threading, time
        from pathlib import Path
        from lib.serving.server_process import ServerProcess
        server = ServerProcess("--model", sys.argv[1], "--device", "cpu")
        def start():
            server.start()
            server.wait_ready()
        if sys.argv[3] == "main":
            start()
        else:
            thread = threading.Thread(target=start)
            thread.start()
            thread.join()
        Path(sys.argv[2]).write_text(f"{server.pid} {server.url}")
        time.sleep(300)
    """
    file = tmp_path / "server"
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(checkpoint), str(file), thread],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)},
    )
    try:
        wait_until(lambda: file.exists() and file.read_text(), 120)
        pid, url = file.read_text().split()
        child = psutil.Process(int(pid))
        with httpx.Client(base_url=url, timeout=120) as client, ThreadPoolExecutor(1) as pool:
            long = {**LONG, "max_tokens": 2040, "n": 64}
            answer = pool.submit(client.post, "/v1/completions", json=long)
            wait_until(lambda: gauges(client)["num_requests_running"] == 64, 30)
            parent.kill()
            parent.wait(10)
            gone = lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE  # noqa: E731
            wait_until(gone, 5)
            assert isinstance(answer.exception(), httpx.TransportError), "it did not finish first"
    finally:
        parent.kill()
        parent.wait(10)


def test_a_server_that_would_not_log_its_port_is_not_started() -> None:
    with pytest.raises(ValueError, match="--log-level must be debug or info.*'warning'"):
        ServerProcess("--log-level", "warning")


def test_every_argument_of_the_llm_is_a_flag() -> None:
    """Of the same name, with the same default, and it arrives."""
    assert parse([]).llm == {option.name: option.default for option in fields(EngineOptions)}
    for option in fields(EngineOptions):
        flag, value = "--" + option.name.replace("_", "-"), option.default
        if isinstance(value, bool):
            (argument, value) = ([flag], True) if not value else (["--no-" + flag[2:]], False)
            if option.name == "cuda_graphs":
                argument += ["--attention", "fused"]
        elif "choices" in option.metadata:
            value = next(c for c in option.metadata["choices"] if c is not None)
            argument = [flag, value]
        elif "bool" in option.type:  # or "auto"
            value, argument = True, [flag]
        elif "dict" in option.type:
            value = {"method": "ngram"}
            argument = [flag, json.dumps(value)]
        elif "int" in option.type:
            value = 3
            argument = [flag, "3"]
        else:
            value = "gpt2"
            argument = [flag, value]
        assert parse(argument).llm[option.name] == value


def test_every_option_of_the_server_is_a_flag(tmp_path) -> None:
    options = parse(
        ["--port", "1", "--cors-origin", "a", "--cors-origin", "b", "--request-timeout", "2.5"]
    )
    assert (options.port, options.cors_origins, options.request_timeout) == (1, ["a", "b"], 2.5)
    assert options == ServerOptions(
        llm=parse([]).llm, port=1, cors_origins=["a", "b"], request_timeout=2.5
    )
    assert parse([]).cors_origins == [] and parse([]).served_model_name == "smollm2"
    folder = tmp_path / "some-model"
    folder.mkdir()
    assert parse(["--model", str(folder)]).served_model_name == "some-model"


def test_a_dictionary_is_given_as_json(capsys) -> None:
    @dataclass
    class Options:
        config: dict[str, Any] | None = None
        on: bool = True

    parser = argparse.ArgumentParser()
    assert add_flags(parser, Options) == ["config", "on"]
    given = parser.parse_args(["--config", '{"method": "ngram"}', "--no-on"])
    assert (given.config, given.on) == ({"method": "ngram"}, False)
    for text in ("5", "{"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--config", text])
        assert "JSON object" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--port", "70000"], "port must be >= 0 and <= 65535"),
        (["--max-concurrent-requests", "0"], "max_concurrent_requests must be >= 1"),
        (["--drain-timeout", "nan"], "drain_timeout must be >= 0"),
        (["--request-timeout", "-1"], "request_timeout must be >= 0"),
        (["--request-timeout", "inf"], "request_timeout must be >= 0"),
        (["--log-level", "loud"], "log_level must be one of"),
        (["--max-num-seqs", "many"], "--max-num-seqs"),
        (["--max-num-seqs", "0"], "max_num_seqs must be an integer >= 1"),
        (["--scheduler", "best"], "scheduler must be one of"),
        (["--kv-cache", "none", "--num-blocks", "9"], "num_blocks must be None"),
        (["--what"], "--what"),
    ],
)
def test_bad_arguments_exit_with_2(arguments: list[str], says: str, capsys) -> None:
    with pytest.raises(SystemExit) as exit:
        parse(arguments)
    shown = capsys.readouterr().err
    assert exit.value.code == 2 and "error" in shown and says in shown
