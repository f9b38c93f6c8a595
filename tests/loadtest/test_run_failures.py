"""Whatever the server does, every request has exactly one outcome."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter

import pytest

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
