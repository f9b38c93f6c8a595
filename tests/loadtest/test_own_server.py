"""The load generator as a command, against this book's own server: a sweep, its limit, and an interrupt."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib.loadtest.client import Target
from lib.loadtest.requests import make_requests
from lib.loadtest.run import closed_loop, open_loop
from lib.loadtest.stats import summarize
from tests.load_fake_server import FakeServer, Plan
from tests.serving_support import start, write_checkpoint

CAPACITY = 12


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("load") / "tiny")
    with start(
        checkpoint, "--max-concurrent-requests", str(CAPACITY), "--max-num-seqs", "12"
    ) as process:
        yield process


def load(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "lib.loadtest", *arguments]


def test_a_sweep_below_the_limit_loses_nothing(server, tmp_path):
    out = tmp_path / "run.json"
    result = subprocess.run(
        load(
            "--url",
            server.url,
            "--concurrency",
            "1,12",
            "--num-requests",
            "12",
            "--max-tokens",
            "4",
            "--vocab-size",
            "256",
            "--out",
            str(out),
        ),
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""  # no terminal, no live line
    for run in json.loads(out.read_text())["runs"]:
        s = run["summary"]
        assert (s["completed"], s["output_tokens"], s["counted"]) == (12, 12 * 4, True)
        assert all(
            r["prompt_tokens"] == 6 and r["finish_reason"] == "length" for r in run["requests"]
        )


def test_above_the_limit_exactly_those_over_capacity_are_refused(server):
    requests = make_requests("short", 40, max_tokens=800, vocab_size=256)
    run = open_loop(Target(server.url), requests, [0.0] * 40)
    s = summarize(run, {"ttft": 600.0})
    assert (s["completed"], s["rejected"], s["good"]) == (CAPACITY, 40 - CAPACITY, CAPACITY)
    assert all(
        "sequences are running or waiting" in t.error for t in run.traces if t.outcome == "rejected"
    )
    assert max(g["running"] for g in run.gauges if g["running"] is not None) <= CAPACITY


def test_real_eos(server):
    """Without ignore_eos an answer may end early, and the tokens that are counted are those that came."""
    run = closed_loop(
        Target(server.url, ignore_eos=False),
        make_requests("short", 6, max_tokens=10, vocab_size=256),
        6,
    )
    assert all(t.completed and 1 <= t.output_tokens <= 10 for t in run.traces)


def test_an_interrupted_command_reports_what_completed():
    with FakeServer(lambda i, body: Plan(ttft=0.1, gap=0.01, tokens=3)) as fake:
        process = subprocess.Popen(
            load(
                "--url",
                fake.url,
                "--model",
                "m",
                "--concurrency",
                "2,4",
                "--num-requests",
                "5000",
                "--max-tokens",
                "3",
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ},
        )
        deadline = time.monotonic() + 40
        while len(fake.bodies) < 20 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130, out + err
    assert (
        "ENDED EARLY: interrupted" in out
        and "output tokens/s" in out
        and "1 of 2 loads were not begun" in out
    )
