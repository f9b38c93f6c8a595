"""The command reports what completed, writes what was asked for, and its exit status says whether it failed."""

from __future__ import annotations

import json
import socket
import threading

import pytest

from lib.loadtest.cli import main
from tests.load_fake_server import FakeServer, Plan

QUICK = dict(ttft=0.02, gap=0.01, tokens=3)


@pytest.fixture
def dead_url():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


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
