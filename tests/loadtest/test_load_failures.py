"""Whatever the server does, every request has exactly one outcome, and the command says what completed and fails."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter

import pytest

from lib.loadtest.cli import main
from lib.loadtest.client import Target
from lib.loadtest.report import text_report
from lib.loadtest.request_trace import OUTCOMES
from lib.loadtest.requests import make_requests
from lib.loadtest.run import closed_loop, open_loop
from lib.loadtest.stats import summarize
from tests.load_fake_server import FakeServer, Plan

QUICK = dict(ttft=0.02, gap=0.01, tokens=3)


def outcomes(run) -> dict[str, int]:
    """Counts, after a look at each trace: one outcome, an end if and only if it was sent, an error unless it is well."""
    for trace in run.traces:
        assert trace.outcome in OUTCOMES
        assert (trace.sent is None) == (trace.end is None) == (trace.outcome == "unsent")
        assert (trace.error is None) == (trace.outcome in ("completed", "unsent"))
    counts = Counter(trace.outcome for trace in run.traces)
    s = summarize(run)
    assert sum(s[outcome] for outcome in OUTCOMES) == s["requests"] == len(run.traces)
    return dict(counts)


@pytest.fixture
def dead_url():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def test_the_refused_are_exactly_those_over_capacity():
    with FakeServer(lambda i, body: Plan(ttft=0.6, tokens=1), capacity=5) as server:
        run = open_loop(Target(server.url), make_requests("short", 12, max_tokens=1), [0.0] * 12)
    assert outcomes(run) == {"completed": 5, "rejected": 7} and server.refused == 7
    assert {t.status for t in run.traces if t.outcome == "rejected"} == {503}
    assert all(t.error == "HTTP 503: full" for t in run.traces if t.outcome == "rejected")
    assert summarize(run)["rejected_fraction"] == 7 / 12


def test_each_way_to_fail_has_its_outcome():
    plans = {
        0: Plan(**QUICK),
        1: Plan(status=429),
        2: Plan(status=500),
        3: Plan(**QUICK, die_after=0),
        4: Plan(**QUICK, die_after=2),
        5: Plan(**QUICK, hang_after=1),
        6: Plan(**QUICK, error_after=1),
        7: Plan(**QUICK, done=False),
        8: Plan(**QUICK),
    }
    with FakeServer(lambda i, body: plans[i]) as server:
        run = closed_loop(
            Target(server.url, timeout=0.5), make_requests("short", 9, max_tokens=3), 1
        )
    assert [t.outcome for t in run.traces] == [
        "completed",
        "rejected",
        "failed",
        "failed",
        "failed",
        "timeout",
        "failed",
        "failed",
        "completed",
    ]
    assert outcomes(run)["failed"] == 5 and run.problem is None
    errors = [t.error for t in run.traces]
    assert errors[2] == "HTTP 500: as scripted" and "connection lost after 0 chunks" in errors[3]
    assert (
        "connection lost after 2 chunks" in errors[4]
        and "within 0.5 s, after 1 chunks" in errors[5]
    )
    assert "out of luck" in errors[6] and "ended before the answer did" in errors[7]
    assert [len(t.chunks) for t in run.traces[3:8]] == [0, 2, 1, 1, 3]
    report = text_report(run)
    assert "2 completed, 1 rejected, 5 failed, 1 timeout" in report and "out of luck" in report


@pytest.mark.parametrize("mode", ["closed", "open"])
def test_a_server_that_dies_midway(mode):
    with FakeServer(lambda i, body: Plan(ttft=0.05, gap=0.05, tokens=4)) as server:
        threading.Timer(0.5, server.kill).start()
        requests, target = make_requests("short", 40, max_tokens=4), Target(server.url)
        began = time.monotonic()
        run = (
            closed_loop(target, requests, 3)
            if mode == "closed"
            else open_loop(target, requests, [0.05 * i for i in range(40)])
        )
        assert time.monotonic() - began < 4
    counts = outcomes(run)
    assert counts["completed"] >= 3 and counts["failed"] >= 2 and counts["unsent"] >= 15
    assert "cannot connect" in run.problem and "ENDED EARLY" in text_report(run)


def test_a_hung_socket_ends_the_run():
    """Not a byte for `stall_timeout` seconds: those in flight timed out, the rest is not even tried."""
    with FakeServer(lambda i, body: Plan(**QUICK, hang_after=None if i < 4 else 1)) as server:
        began = time.monotonic()
        run = closed_loop(
            Target(server.url, stall_timeout=0.6), make_requests("short", 20, max_tokens=3), 2
        )
        assert time.monotonic() - began < 4
    assert outcomes(run) == {"completed": 4, "timeout": 2, "unsent": 14}
    assert "not a byte from the server for 0.6 s, with 2 requests in flight" in run.problem


def test_a_port_that_accepts_and_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        run = closed_loop(Target(url, stall_timeout=0.4), make_requests("short", 3), 1)
    assert outcomes(run) == {"timeout": 1, "unsent": 2}


def test_a_busy_server_is_not_a_hung_one():
    """A request may take longer than the stall timeout as long as others hear something."""
    with FakeServer(
        lambda i, body: Plan(ttft=0.9, tokens=1) if i == 0 else Plan(**QUICK)
    ) as server:
        run = open_loop(
            Target(server.url, stall_timeout=0.5),
            make_requests("short", 12, max_tokens=3),
            [0.1 * i for i in range(12)],
        )
    assert outcomes(run) == {"completed": 12}


def test_a_warm_up_that_fails_ends_it(dead_url):
    requests = make_requests("short", 4)
    with FakeServer(lambda i, body: Plan(status=404)) as server:
        run = closed_loop(Target(server.url), requests, 2, warmup=requests)
        assert (
            outcomes(run) == {"unsent": 4} and "HTTP 404" in run.problem and len(server.bodies) == 4
        )
    run = closed_loop(Target(dead_url), requests, 2, warmup=requests)
    assert outcomes(run) == {"unsent": 4} and "cannot connect" in run.problem


def test_bad_arguments():
    target, requests = Target("http://127.0.0.1:1"), make_requests("short", 2)
    for run in (
        lambda: closed_loop(target, requests, 0),
        lambda: closed_loop(target, [], 1),
        lambda: open_loop(target, requests, [0.0]),
        lambda: open_loop(target, requests, [1.0, 0.5]),
        lambda: open_loop(target, requests, [0.0, 1.0], max_in_flight=0),
    ):
        with pytest.raises(ValueError, match="must be"):
            run()


# --- the command ---


def test_the_command_reports_and_writes(tmp_path, capsys):
    out, svg = tmp_path / "run.json", tmp_path / "run.svg"
    with FakeServer(lambda i, body: Plan(**QUICK)) as server:
        status = main(
            [
                "--url",
                server.url,
                "--concurrency",
                "1,3",
                "--num-requests",
                "6",
                "--max-tokens",
                "3",
                "--warmup",
                "1",
                "--goodput",
                "ttft:5000",
                "e2el:9000",
                "--out",
                str(out),
                "--figure",
                str(svg),
                "--record",
                str(tmp_path / "records"),
            ]
        )
        assert server.bodies[0]["model"] == "fake"
    text = capsys.readouterr().out
    assert (
        status == 0
        and "3 users: 6 requests: 6 completed" in text
        and "6 of 6 within ttft 5000 ms" in text
    )
    assert "(p99 indicative)" in text
    data = json.loads(out.read_text())
    assert [run["summary"]["completed"] for run in data["runs"]] == [6, 6]
    assert [len(run["requests"][0]["chunks"]) for run in data["runs"]] == [3, 3]
    assert data["runs"][0]["config"] | {"url": ""} == {
        "mode": "closed",
        "concurrency": 1,
        "url": "",
        "model": "fake",
        "ignore_eos": True,
        "requests": 6,
        "warmup": 1,
        "workload": "short",
        "max_tokens": 3,
        "seed": 0,
    }
    assert "<svg" in svg.read_text()
    (record,) = (tmp_path / "records").glob("*/load.json")
    assert json.loads(record.read_text())["measurements"]["closed"]["columns"]["completed"] == [
        6,
        6,
    ]


@pytest.mark.parametrize("arrivals", ["burst", "steady", "poisson", "gamma"])
def test_the_command_in_open_mode(arrivals, capsys, tmp_path):
    rate = [] if arrivals == "burst" else ["--rate", "40,80", "--burstiness", "0.5"]
    with FakeServer(lambda i, body: Plan(**QUICK)) as server:
        status = main(
            [
                "--url",
                server.url,
                "--mode",
                "open",
                "--arrivals",
                arrivals,
                *rate,
                "--num-requests",
                "8",
                "--max-tokens",
                "3",
                "--workload",
                "chat",
                "--text",
                "--figure",
                str(tmp_path / "x.svg"),
            ]
        )
    assert status == 0 and capsys.readouterr().out.count("8 requests: 8 completed") == (
        1 if arrivals == "burst" else 2
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--concurrency", "0"],
        ["--concurrency", "a"],
        ["--mode", "open"],
        ["--mode", "open", "--rate", "inf"],
        ["--mode", "open", "--arrivals", "burst", "--rate", "3"],
        ["--url", "localhost"],
        ["--goodput", "itl:3"],
        ["--goodput", "ttft"],
        ["--warmup", "-1"],
        ["--max-tokens", "0"],
        ["--timeout", "0"],
        ["--workload", "odd"],
    ],
)
def test_arguments_that_make_no_sense(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--model", "m", *arguments])
    assert exit.value.code == 2 and "error" in capsys.readouterr().err


def test_the_command_fails_where_the_server_is_not(dead_url, capsys):
    assert main(["--url", dead_url]) == 1
    assert "Is the server up" in capsys.readouterr().err
    assert main(["--url", dead_url, "--model", "m", "--concurrency", "2,4"]) == 1
    text = capsys.readouterr().out
    assert (
        "0 completed" in text and "cannot connect" in text and "1 of 2 loads were not begun" in text
    )


def test_the_command_fails_at_a_wrong_url(capsys):
    with FakeServer() as server:
        assert main(["--url", server.url + "/other"]) == 1
        assert "404" in capsys.readouterr().err
        assert main(["--url", server.url + "/other", "--model", "m", "--concurrency", "1"]) == 1
        assert "HTTP 404" in capsys.readouterr().out


def test_the_command_reports_what_completed_before_the_end(capsys, tmp_path):
    with FakeServer(lambda i, body: Plan(ttft=0.05, gap=0.05, tokens=3)) as server:
        threading.Timer(1.0, server.kill).start()
        status = main(
            [
                "--url",
                server.url,
                "--concurrency",
                "2",
                "--num-requests",
                "60",
                "--max-tokens",
                "3",
                "--warmup",
                "0",
                "--out",
                str(tmp_path / "out.json"),
            ]
        )
    text = capsys.readouterr().out
    completed = json.loads((tmp_path / "out.json").read_text())["runs"][0]["summary"]["completed"]
    assert (
        status == 1
        and completed > 0
        and f"{completed} completed" in text
        and "output tokens/s" in text
    )


def test_refusals_alone_are_a_result_and_not_a_failure():
    arguments = ["--mode", "open", "--arrivals", "burst", "--num-requests", "6", "--warmup", "0"]
    with FakeServer(lambda i, body: Plan(ttft=0.5, tokens=1), capacity=2) as server:
        assert main(["--url", server.url, *arguments]) == 0
    with FakeServer(capacity=0) as server:
        assert main(["--url", server.url, *arguments]) == 1


def test_a_file_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with FakeServer(lambda i, body: Plan(**QUICK)) as server:
        assert (
            main(
                [
                    "--url",
                    server.url,
                    "--concurrency",
                    "1",
                    "--num-requests",
                    "2",
                    "--max-tokens",
                    "3",
                    "--out",
                    str(tmp_path / "file" / "x.json"),
                ]
            )
            == 1
        )
    assert "not written" in capsys.readouterr().err
