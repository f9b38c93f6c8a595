"""Prefix caching as the server's clients see it: usage, salts, metrics, snapshots."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.serving_support import gauges, sse, start

pytest_plugins = ["tests.serving_fixtures"]

PROMPT = "a prompt of exactly forty bytes, no more"
BODY = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def own_server(checkpoint):
    with start(checkpoint, "--num-blocks", "65", "--max-model-len", "128") as process:
        yield process


@pytest.fixture
def own_client(own_server):
    with httpx.Client(base_url=own_server.url, timeout=30) as client:
        yield client


def cached(client: httpx.Client, route: str = "/v1/completions", **fields) -> int:
    answer = client.post(route, json={**BODY, **fields}).json()
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_usage_metrics_and_snapshot_count_what_was_found(own_client, own_server):
    before = gauges(own_client)
    assert before["prefix_cache_queries_total"] == before["prefix_cache_hits_total"] == 0
    assert [cached(own_client) for _ in range(2)] == [0, 32]
    stream = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
    last = sse(own_client.post("/v1/completions", json=stream))[-2]
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 32}
    after = gauges(own_client)
    assert after["prefix_cache_queries_total"] == 3 * len(PROMPT)
    assert after["prefix_cache_hits_total"] == 2 * 32
    assert after["kv_cache_usage_perc"] == 0  # what is cached is not in use
    with httpx.stream("GET", own_server.url + "/engine/events", timeout=20) as response:
        line = next(line for line in response.iter_lines() if line.startswith("data: "))
    snapshot = json.loads(line[6:])
    assert (
        len(snapshot["blocks_cached"]) == 2 == snapshot["num_cached"]
    )  # 43 stored tokens: two full blocks
    assert snapshot["blocks_free"] + 2 == snapshot["blocks_total"]
    assert snapshot["prefix_hits"] == 64


def test_salts_separate_tenants_on_both_routes(own_client):
    salts = ("x", "y", "x", "y")
    assert [cached(own_client, cache_salt=salt) for salt in salts] == [0, 0, 32, 32]
    chat = {"messages": [{"role": "user", "content": PROMPT}]}

    def ask(salt: str) -> int:
        body = {**chat, "max_tokens": 2, "cache_salt": salt}
        answer = own_client.post("/v1/chat/completions", json=body).json()
        return answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    first, other, again = ask("one"), ask("two"), ask("one")
    assert first == other == 0 and again > 0


@pytest.mark.parametrize("salt", ["", 3, "s" * 257])
def test_a_bad_salt_is_refused(own_client, salt):
    answer = own_client.post("/v1/completions", json={**BODY, "cache_salt": salt})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "cache_salt"


def test_it_can_be_switched_off(checkpoint):
    with (
        start(checkpoint, "--no-enable-prefix-caching", "--num-blocks", "65") as process,
        httpx.Client(base_url=process.url, timeout=30) as client,
    ):
        assert [cached(client) for _ in range(2)] == [0, 0]
        assert gauges(client)["prefix_cache_queries_total"] == 0
