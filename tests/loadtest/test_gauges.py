"""The server's gauges, from its Prometheus text."""

from __future__ import annotations

import json

import pytest

from lib.loadtest.client import Target
from lib.loadtest.gauges import parse_gauges
from lib.loadtest.requests import make_requests
from lib.loadtest.results import save_json
from lib.loadtest.run import closed_loop
from tests.load_fake_server import FakeServer, Plan


def test_gauges_by_vllms_and_sglangs_names():
    text = (
        '# HELP vllm:num_requests_running x\nvllm:num_requests_running{model_name="a b"} 3.0\n'
        'vllm:num_requests_waiting{model_name="a"} 2\nvllm:kv_cache_usage_perc{e="0"} 0.25\n'
        'vllm:kv_cache_usage_perc{e="1"} 0.75\nvllm:request_success_total{r="x"} 9\n'
    )
    assert parse_gauges(text) == {"running": 3, "waiting": 2, "kv_cache": 0.5}
    assert parse_gauges("sglang:num_running_reqs 4\nsglang:token_usage 0.5\n") == {
        "running": 4,
        "kv_cache": 0.5,
    }
    assert parse_gauges("up 1\n") == {}


@pytest.mark.parametrize("value", ["NaN", "+Inf"])
def test_a_gauge_that_is_no_finite_number_counts_as_absent(value):
    """One unknown part makes a sum unknown; the other gauges stay."""
    text = f'vllm:num_requests_running{{e="0"}} 3\nvllm:num_requests_running{{e="1"}} {value}\nvllm:num_requests_waiting 2\n'
    assert parse_gauges(text) == {"waiting": 2}


def test_gauges_that_are_nan_reach_the_file_as_null(tmp_path):
    metrics = "vllm:num_requests_running 3\nvllm:kv_cache_usage_perc NaN\n"
    with FakeServer(lambda i, body: Plan(ttft=1.0, tokens=1), metrics=metrics) as server:
        run = closed_loop(Target(server.url), make_requests("short", 1, max_tokens=1), 1)
    save_json(tmp_path / "run.json", [run])
    (saved,) = json.loads((tmp_path / "run.json").read_text())["runs"]
    assert {(g["running"], g["kv_cache"]) for g in saved["gauges"]} == {(3, None)}
    assert "kv_cache" not in saved["summary"]["gauges"]
