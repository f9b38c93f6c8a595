"""The load generator against a server with known delays: what it says about them is right, and late requests show."""

from __future__ import annotations

import time
from statistics import median

import pytest

from lib.loadtest.arrivals import arrival_times
from lib.loadtest.client import Target
from lib.loadtest.requests import make_requests
from lib.loadtest.run import closed_loop, open_loop
from lib.loadtest.stats import summarize
from tests.load_fake_server import FakeServer, Plan

TOLERANCE = 0.03  # seconds, for a typical value
HICCUP = 0.15  # for a single one: the machine may do other things as well


def near(seconds: float):
    return pytest.approx(seconds, abs=TOLERANCE)


def about(seconds: float):
    return pytest.approx(seconds, abs=HICCUP)


def typical(samples) -> float:
    return median(list(samples))


def test_ttft_tpot_and_gaps_come_out_as_scripted():
    delays = [0.05, 0.1, 0.2]
    with FakeServer(lambda i, body: Plan(ttft=delays[i % 3], gap=0.06, tokens=5)) as server:
        run = closed_loop(Target(server.url), make_requests("short", 6, max_tokens=5), 1)
    for i, trace in enumerate(run.traces):
        assert trace.completed and trace.status == 200 and trace.finish_reason == "length"
        assert (trace.output_tokens, trace.prompt_tokens, trace.counted, len(trace.chunks)) == (
            5,
            7,
            True,
            5,
        )
        assert trace.ttft == about(delays[i % 3]) and trace.tpot == near(0.06)
        assert typical(trace.gaps) == near(0.06) and trace.e2e == about(delays[i % 3] + 0.24)
    s = summarize(run, {"ttft": 0.15})
    assert s["ttft"]["p50"] == near(0.1) and s["ttft"]["p99"] == about(0.2) and s["good"] == 4
    assert s["duration"] == pytest.approx(2 * (0.35 + 3 * 0.24), rel=0.2)
    assert s["output_throughput"] == pytest.approx(30 / s["duration"])
    assert s["mean_in_flight"] == pytest.approx(1, abs=0.1)  # Little's law, and there is one user


def test_the_body_is_what_was_asked_for():
    with FakeServer(lambda i, body: Plan(ttft=0.01, tokens=1)) as server:
        requests = make_requests("medium", 2, max_tokens=3)
        closed_loop(Target(server.url, "m"), requests, 1)
        closed_loop(Target(server.url + "/v1", None, ignore_eos=False), requests[:1], 1)
    assert server.bodies[0] == {
        "model": "m",
        "prompt": requests[0].prompt,
        "max_tokens": 3,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    assert not {"model", "ignore_eos"} & server.bodies[2].keys()


def test_users_of_a_closed_loop_never_exceed_their_number():
    with FakeServer(lambda i, body: Plan(ttft=0.05, gap=0.01, tokens=2)) as server:
        run = closed_loop(
            Target(server.url),
            make_requests("short", 20, max_tokens=2),
            4,
            warmup=make_requests("short", 3, max_tokens=2, seed=9),
        )
    assert server.peak == 4 and len(server.bodies) == 23
    assert len(run.warmup) == 3 and all(t.completed for t in run.warmup + run.traces)
    # A user's next request is due when the last one has ended.
    ends = {0.0, *(trace.end for trace in run.traces)}
    assert all(trace.scheduled in ends for trace in run.traces)
    assert summarize(run)["lag"]["p50"] < TOLERANCE


def test_several_tokens_a_chunk_and_several_chunks_a_packet():
    with FakeServer(
        lambda i, body: Plan(ttft=0.05, gap=0.05, tokens=8, **[{"per_chunk": 4}, {"lump": 4}][i])
    ) as server:
        bundled, lumped = closed_loop(
            Target(server.url), make_requests("short", 2, max_tokens=8), 1
        ).traces
    assert (
        bundled.output_tokens == 8
        and bundled.gaps == [about(0.05)]
        and bundled.tpot == near(0.05 / 7)
    )
    assert lumped.output_tokens == 8 and len(lumped.chunks) == 8
    assert lumped.gaps == [0, 0, 0, about(0.2), 0, 0, 0] and lumped.tpot == near(0.2 / 7)


def test_without_usage_chunks_are_counted_and_it_is_said():
    with FakeServer(
        lambda i, body: Plan(ttft=0.01, gap=0.01, tokens=6, per_chunk=2, usage=False)
    ) as server:
        run = closed_loop(Target(server.url), make_requests("short", 1, max_tokens=6), 1)
    assert (
        run.traces[0].completed
        and run.traces[0].output_tokens == 3
        and not summarize(run)["counted"]
    )


def test_an_open_loop_sends_on_time_whatever_the_server_does():
    times = arrival_times("poisson", 20, rate=25, seed=2)
    with FakeServer(lambda i, body: Plan(ttft=0.4, tokens=1)) as server:
        began = time.perf_counter()
        run = open_loop(Target(server.url), make_requests("short", 20, max_tokens=1), times)
    assert [trace.scheduled for trace in run.traces] == times
    assert 0 <= run.started - began < 2 and run.started + run.traces[-1].end <= time.perf_counter()
    assert typical(t.lag for t in run.traces) == near(0) and all(
        0 <= t.lag < HICCUP for t in run.traces
    )
    assert typical(t.ttft for t in run.traces) == near(0.4) and all(t.wait == 0 for t in run.traces)
    assert all(
        t.ttft == about(0.4) and t.ttft_sent == pytest.approx(t.ttft - t.lag) for t in run.traces
    )
    assert server.peak > 4


def test_coordinated_omission_shows_only_in_times_since_due():
    """One request at a time, due every 100 ms, 50 ms of service; the fourth stalls for a second.

    Counted from when they were sent, one request in twenty was slow. Counted from when they were due, a dozen were:
    all those that a user would have waited with.
    """
    with FakeServer(lambda i, body: Plan(ttft=1.0 if i == 3 else 0.05, tokens=1)) as server:
        requests = make_requests("short", 20, max_tokens=1)
        run = open_loop(
            Target(server.url), requests, arrival_times("steady", 20, rate=10), max_in_flight=1
        )
    due, sent = [t.ttft for t in run.traces], [t.ttft_sent for t in run.traces]
    assert sent[3] > 0.9 and sum(t > 0.2 for t in sent) <= 3 and sum(t > 0.2 for t in due) >= 10
    # By hand: request 3 + k is due 0.1 k s after the stall began and done 0.05 k s after it ended.
    for k in range(1, 10):
        assert due[3 + k] == about(1.0 - 0.05 * k)
    s = summarize(run)
    assert s["ttft_sent"]["p90"] < 0.15 and s["ttft"]["p90"] > 0.6
    assert (
        s["lag"]["p99"] < HICCUP and s["wait"]["p90"] > 0.5
    )  # the wait for a place is not the generator's lag
    assert all(t.wait == pytest.approx(t.ttft - t.ttft_sent, abs=HICCUP) for t in run.traces)


def test_a_queue_in_the_server_shows_in_both():
    """A serial server, all at once: the k-th waits for those before it."""
    with FakeServer(lambda i, body: Plan(ttft=0.06, tokens=1), serial=True) as server:
        run = open_loop(Target(server.url), make_requests("short", 6, max_tokens=1), [0.0] * 6)
    assert sorted(t.ttft_sent for t in run.traces) == [about(0.06 * (k + 1)) for k in range(6)]
    assert summarize(run)["ttft"]["max"] >= 0.36 and summarize(run)["ttft"]["p50"] == about(0.21)


def test_gauges_are_sampled():
    metrics = (
        'vllm:num_requests_running{a="b"} 3.0\nvllm:num_requests_waiting{a="b"} 2.0\n'
        'vllm:kv_cache_usage_perc{a="b"} 0.5\n'
    )
    with FakeServer(lambda i, body: Plan(ttft=1.3, tokens=1), metrics=metrics) as server:
        run = closed_loop(Target(server.url), make_requests("short", 1, max_tokens=1), 1)
    assert {(g["running"], g["waiting"], g["kv_cache"]) for g in run.gauges} == {(3, 2, 0.5)}
    gauges = summarize(run)["gauges"]
    assert gauges["running"] == {"mean": 3, "peak": 3} and 0 <= gauges["cpu"]["peak"] <= 100
    assert len(run.lateness) > 5


def test_a_load_asks_for_its_sockets_and_says_where_they_are_too_few(monkeypatch):
    from lib.loadtest import run as module

    asked = []

    def too_few(connections):
        asked.append(connections)
        return "connections beyond that fail"

    monkeypatch.setattr(module, "allow_open_files", too_few)
    with FakeServer(lambda i, body: Plan(ttft=0.01, tokens=1)) as server:
        target, requests = Target(server.url), make_requests("short", 3, max_tokens=1)
        with pytest.warns(UserWarning, match="beyond that fail"):
            closed_loop(target, requests, 2)
            open_loop(target, requests, [0.0, 0.0, 0.0])
            run = open_loop(target, requests, [0.0, 0.0, 0.0], max_in_flight=1)
    assert asked == [2, 3, 1] and all(trace.completed for trace in run.traces)
