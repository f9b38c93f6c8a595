"""What other load tools report, read in our terms."""

from __future__ import annotations

import copy
import json
from statistics import median

import pytest

from lib.loadtest.client import Target
from lib.loadtest.readings import (
    ToolError,
    read_aiperf,
    read_guidellm,
    read_ours,
)
from lib.loadtest.requests import make_requests
from lib.loadtest.run import closed_loop
from tests.load_fake_server import FakeServer, Plan

# What guidellm 0.8.1 and aiperf 0.13.0 wrote after 12 requests of 56 + 8 tokens each, cut down to a few fields.
GUIDELLM = json.loads("""
{"metadata": {"version": 2, "guidellm_version": "0.8.1"},
 "benchmarks": [{
  "type_": "generative_benchmark",
  "start_time": 1795526922.3893192, "end_time": 1795526951.1488402, "duration": 28.759521007537842,
  "metrics": {
   "request_totals": {"successful": 12, "errored": 0, "incomplete": 0, "total": 12},
   "output_tokens_per_second": {"successful": {"mean": 3.3380249961339232, "median": 1.148922299146287, "count": 96}}},
  "requests": {"errored": [], "incomplete": [], "successful": [
   {"prompt_tokens": 56, "output_tokens": 8, "time_to_first_token_ms": 6600.0297,
    "inter_token_latency_ms": 1741.2004, "time_per_output_token_ms": 2348.5541},
   {"prompt_tokens": 56, "output_tokens": 8, "time_to_first_token_ms": 6589.7052,
    "inter_token_latency_ms": 1741.1706, "time_per_output_token_ms": 2347.2374},
   {"prompt_tokens": 56, "output_tokens": 8, "time_to_first_token_ms": 6589.1516,
    "inter_token_latency_ms": 1741.1472, "time_per_output_token_ms": 2347.1477},
   {"prompt_tokens": 56, "output_tokens": 8, "time_to_first_token_ms": 11111.0063,
    "inter_token_latency_ms": 1287.1327, "time_per_output_token_ms": 2515.1169},
   {"prompt_tokens": 56, "output_tokens": 8, "time_to_first_token_ms": 5220.3882,
    "inter_token_latency_ms": 284.4758, "time_per_output_token_ms": 901.4648},
   {"prompt_tokens": 56, "output_tokens": 8, "time_to_first_token_ms": 5219.7471,
    "inter_token_latency_ms": 283.9347, "time_per_output_token_ms": 900.9112},
   {"prompt_tokens": 56, "output_tokens": 8, "time_to_first_token_ms": 5212.2173,
    "inter_token_latency_ms": 284.0577, "time_per_output_token_ms": 900.0776},
   {"prompt_tokens": 56, "output_tokens": 8, "time_to_first_token_ms": 4821.4006,
    "inter_token_latency_ms": 167.3269, "time_per_output_token_ms": 749.0861},
   {"prompt_tokens": 56, "output_tokens": 8, "time_to_first_token_ms": 1660.1923,
    "inter_token_latency_ms": 141.6605, "time_per_output_token_ms": 331.4769},
   {"prompt_tokens": 56, "output_tokens": 8, "time_to_first_token_ms": 1657.7959,
    "inter_token_latency_ms": 141.6409, "time_per_output_token_ms": 331.1602},
   {"prompt_tokens": 56, "output_tokens": 8, "time_to_first_token_ms": 1660.3940,
    "inter_token_latency_ms": 141.6211, "time_per_output_token_ms": 331.4677},
   {"prompt_tokens": 56, "output_tokens": 8, "time_to_first_token_ms": 2054.0831,
    "inter_token_latency_ms": 83.3322, "time_per_output_token_ms": 329.6761}]}}]}
""")


AIPERF = json.loads("""
{"schema_version": "1.4", "aiperf_version": "0.13.0", "is_complete": true,
 "completed_request_count": {"unit": "requests", "avg": 12.0},
 "request_latency": {"unit": "ms", "avg": 21271.843010416665, "p50": 23966.333478, "count": 12},
 "time_to_first_token": {"unit": "ms", "avg": 9376.864889166665, "p50": 10497.241388, "min": 7003.3959159999995,
   "max": 10628.716022999999, "count": 12},
 "inter_token_latency": {"unit": "ms", "avg": 1699.2825887499998, "p50": 1920.6793975714284, "min": 1252.921989142857,
   "max": 1924.287571142857, "count": 12},
 "output_token_throughput": {"unit": "tokens/sec", "avg": 1.5034224012311375},
 "usage_prompt_tokens": {"unit": "tokens", "avg": 56.0, "min": 56.0, "max": 56.0, "count": 12, "sum": 672.0},
 "usage_completion_tokens": {"unit": "tokens", "avg": 8.0, "min": 8.0, "max": 8.0, "count": 12, "sum": 96.0},
 "benchmark_duration": {"unit": "sec", "avg": 63.845337344}}
""")


REQUESTS = make_requests("long", 12, max_tokens=8, text=True)


def edited(report: dict, path: str, value: object = None) -> dict:
    """A copy with the field at `path` ("a.0.b") set to `value`, or gone if that is None."""
    report = copy.deepcopy(report)
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = report
    for part in way:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return report


def test_guidellm_report():
    reading = read_guidellm(GUIDELLM).check(REQUESTS, prompt=56)
    assert (reading.tool, reading.version, reading.completed) == ("guidellm", "0.8.1", 12)
    assert reading.ttft == pytest.approx((5.2122173 + 5.2197471) / 2)
    assert reading.tpot == pytest.approx(
        (0.2839347 + 0.2840577) / 2
    )  # its ITL; its TPOT has the first token in it
    # What it prints as mean output tokens a second is the same ratio.
    shown = GUIDELLM["benchmarks"][0]["metrics"]["output_tokens_per_second"]["successful"]["mean"]
    assert reading.throughput == pytest.approx(96 / 28.759521) == pytest.approx(shown)


def test_guidellm_inter_token_latency_is_our_tpot():
    for request in GUIDELLM["benchmarks"][0]["requests"]["successful"]:
        n, ttft = request["output_tokens"], request["time_to_first_token_ms"]
        last = request["time_per_output_token_ms"] * n  # from sent to the last token
        assert request["inter_token_latency_ms"] == pytest.approx((last - ttft) / (n - 1), rel=1e-4)
        alone = edited(GUIDELLM, "benchmarks.0.requests.successful", [request])
        assert read_guidellm(alone).tpot == pytest.approx((last - ttft) / (n - 1) / 1e3, rel=1e-4)


def test_aiperf_report():
    reading = read_aiperf(AIPERF).check(REQUESTS, prompt=56)
    assert (reading.tool, reading.version, reading.completed) == ("aiperf", "0.13.0", 12)
    assert (reading.ttft, reading.tpot) == (pytest.approx(10.4972414), pytest.approx(1.9206794))
    # Over its own duration; what it prints has a few ms more.
    assert reading.throughput == pytest.approx(96 / 63.845337)
    assert reading.throughput == pytest.approx(AIPERF["output_token_throughput"]["avg"], rel=1e-3)


def test_aiperf_inter_token_latency_is_our_tpot():
    mean = {
        name: AIPERF[name]["avg"]
        for name in ("request_latency", "time_to_first_token", "inter_token_latency")
    }
    assert mean["inter_token_latency"] == pytest.approx(
        (mean["request_latency"] - mean["time_to_first_token"]) / 7
    )
    typical = edited(AIPERF, "inter_token_latency.p50", mean["inter_token_latency"])
    assert read_aiperf(typical).tpot == pytest.approx(
        (mean["request_latency"] - mean["time_to_first_token"]) / 7e3
    )


def test_our_own_run_counts_from_when_a_request_is_sent():
    with FakeServer(lambda i, body: Plan(ttft=0.05, gap=0.02, tokens=8)) as server:
        run = closed_loop(Target(server.url, "model"), REQUESTS, 4)
    reading = read_ours(run)
    assert (reading.completed, reading.output_tokens) == (12, 96)
    assert reading.ttft == pytest.approx(median(t.chunks[0] - t.sent for t in run.traces))
    assert reading.tpot == pytest.approx(
        median((t.chunks[-1] - t.chunks[0]) / 7 for t in run.traces)
    )
    assert reading.throughput == pytest.approx(96 / max(t.end for t in run.traces))
    assert {body["prompt"] for body in server.bodies} == {request.prompt for request in REQUESTS}


def test_our_own_run_with_a_failure_or_without_counts_is_refused():
    with FakeServer(
        lambda i, body: Plan(die_after=1) if i == 5 else Plan(ttft=0.01, gap=0.01)
    ) as server:
        failed = closed_loop(Target(server.url, "model"), REQUESTS, 4)
    with FakeServer(lambda i, body: Plan(ttft=0.01, gap=0.01, usage=False)) as server:
        uncounted = closed_loop(Target(server.url, "model"), REQUESTS, 4)
    for run in (failed, uncounted):
        with pytest.raises(ToolError, match="not every request was completed and counted"):
            read_ours(run)


@pytest.mark.parametrize(
    "read, report, path",
    [
        (read_guidellm, GUIDELLM, "benchmarks.0"),
        (read_guidellm, GUIDELLM, "benchmarks.0.duration"),
        (read_guidellm, GUIDELLM, "benchmarks.0.requests.successful.3.inter_token_latency_ms"),
        (read_guidellm, GUIDELLM, "metadata.guidellm_version"),
        (read_aiperf, AIPERF, "inter_token_latency"),
        (read_aiperf, AIPERF, "usage_completion_tokens"),
        (read_aiperf, AIPERF, "benchmark_duration.avg"),
    ],
)
def test_a_report_without_what_is_needed(read, report, path):
    with pytest.raises(ToolError, match="report is not what its version"):
        read(edited(report, path))


def test_a_report_in_another_unit():
    with pytest.raises(ToolError, match="are in sec, ms, sec"):
        read_aiperf(edited(AIPERF, "time_to_first_token.unit", "sec"))


@pytest.mark.parametrize(
    "read, report, path, value, message",
    [
        (
            read_guidellm,
            GUIDELLM,
            "benchmarks.0.requests.successful.11",
            None,
            r"completed 11 requests with 616 \+ 88",
        ),
        (read_aiperf, AIPERF, "completed_request_count.avg", 11.0, "completed 11 requests"),
        (
            read_guidellm,
            GUIDELLM,
            "benchmarks.0.requests.successful.4.output_tokens",
            3,
            r"12 requests with 672 \+ 91",
        ),
        (read_aiperf, AIPERF, "usage_completion_tokens.sum", 97.0, r"12 requests with 672 \+ 97"),
        (
            read_aiperf,
            AIPERF,
            "usage_prompt_tokens.sum",
            671.0,
            r"with 671 \+ 96 tokens; asked for were 12 with 672",
        ),
    ],
)
def test_counts_must_be_exact(read, report, path, value, message):
    with pytest.raises(ToolError, match=message):
        read(edited(report, path, value)).check(REQUESTS, prompt=56)
