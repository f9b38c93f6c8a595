"""Speculation as the server's clients see it: the flag, the metrics, the drafts in a streamed text, the page."""

from __future__ import annotations

import json
import os
import re
import shutil

import httpx
import pytest

from lib.core.outputs import Chunk
from lib.serving.output_collector import Update, _merge
from tests.serving_support import sse, start

pytest_plugins = ["tests.serving_fixtures"]

CONFIG = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "adaptive": False}
# Tokens that are in the text already become by far the likeliest: it repeats, so the copied drafts are right.
REPEATS = {"temperature": 0, "ignore_eos": True, "repetition_penalty": 0.01}


@pytest.fixture(scope="module")
def own_server(checkpoint):
    flags = ["--num-blocks", "65", "--max-model-len", "256"]
    with start(checkpoint, *flags, "--speculative-config", json.dumps(CONFIG)) as process:
        yield process


@pytest.fixture
def own_client(own_server):
    with httpx.Client(base_url=own_server.url, timeout=30) as client:
        yield client


def counters(client) -> dict[str, float]:
    """The samples about speculation: name without prefix, and position -> value."""
    found = {}
    for line in client.get("/metrics").text.splitlines():
        if match := re.match(r"vllm:spec_decode_(\w+)\{([^}]*)\} (\S+)", line):
            position = re.search(r'position="(\d+)"', match[2])
            found[match[1] + (f"/{position[1]}" if position else "")] = float(match[3])
    return {name: value for name, value in found.items() if "_created" not in name}


def test_metrics_have_vllms_names(own_client):
    assert counters(own_client)["num_drafts_total"] == 0, "the warm-up is not counted"
    body = {"prompt": "abc", "max_tokens": 21, **REPEATS}
    answer = own_client.post("/v1/completions", json=body).json()
    assert answer["usage"]["completion_tokens"] == 21
    found = counters(own_client)
    assert found["num_draft_tokens_total"] >= found["num_accepted_tokens_total"] > 10
    by_position = [found[f"num_accepted_tokens_per_pos_total/{i}"] for i in range(3)]
    assert sum(by_position) == found["num_accepted_tokens_total"]
    assert found["num_drafts_total"] >= by_position[0] >= by_position[1] >= by_position[2] > 0
    assert "num_accepted_tokens_per_pos_total/3" not in found


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_spans_are_the_accepted_drafts(own_client, route):
    body = {"max_tokens": 30, "stream": True, "return_draft_spans": True, **REPEATS}
    if route.startswith("/v1/chat"):
        body["messages"] = [{"role": "user", "content": "abc"}]
    else:
        body |= {"prompt": "abc", "echo": True}
    before = counters(own_client)["num_accepted_tokens_total"]
    choices = [e["choices"][0] for e in sse(own_client.post(route, json=body))[:-1]]
    texts = [c.get("text", c.get("delta", {}).get("content", "")) for c in choices]
    accepted = counters(own_client)["num_accepted_tokens_total"] - before
    spans = [choice["draft_spans"] or [] for choice in choices]
    # A token is a character, unless it is a part of one, as some are that follow the chat's template.
    characters = sum(end - start for each in spans for start, end in each)
    assert 5 < characters <= accepted and (characters == accepted or "chat" in route)
    for text, each in zip(texts, spans):
        assert all(0 <= start < end <= len(text) for start, end in each)
        assert len(each) <= 1
    if route == "/v1/completions":  # the prompt is no draft
        assert texts[0].startswith("abc") and all(start >= 3 for start, _ in spans[0])
    plain = own_client.post(route, json={**body, "return_draft_spans": None})
    assert "draft_spans" not in sse(plain)[0]["choices"][0]
    whole = own_client.post(route, json={**body, "stream": False})
    assert whole.status_code == 400 and whole.json()["error"]["param"] == "return_draft_spans"


def test_merged_chunks_keep_their_spans():
    chunks = [
        Chunk("r", 0, "ab", [1, 2], None, None, [True, False], [(0, 1)]),
        Chunk("r", 0, "cd", [3, 4], None, None),
        Chunk("r", 0, "efg", [5, 6, 7], None, "stop", [True, True, False], [(0, 2)]),
    ]
    (joined,) = _merge([Update(0, [chunk], None) for chunk in chunks]).chunks
    assert (joined.text, joined.draft_spans) == ("abcdefg", [(0, 1), (4, 6)])
    assert joined.drafted == [True, False, False, False, True, True, False]
    (joined,) = _merge([Update(0, [chunks[1]], None), Update(0, [chunks[1]], None)]).chunks
    assert joined.draft_spans is None


@pytest.mark.browser
def test_the_page_colours_accepted_drafts(own_server, own_client):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no chromium here: apt-get install chromium")

    def with_bias(route):
        route.continue_(post_data=json.dumps({**route.request.post_data_json, **REPEATS}))

    with playwright.sync_playwright() as driver:
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=path, args=[*sandbox, "--disable-gpu"])
        page = browser.new_page()
        page.set_default_timeout(60_000)
        problems = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.route("**/v1/chat/completions", with_bias)
        page.goto(own_server.url)
        page.wait_for_selector("[data-state=idle]")
        page.click("summary")
        page.fill("#max_tokens", "40")
        page.fill("#prompt", "abc")
        page.press("#prompt", "Enter")
        page.wait_for_selector(".turn.assistant:not(.writing) .draft")
        text = page.locator(".turn.assistant .text").text_content()
        drafts = page.locator(".turn.assistant .draft").all_text_contents()
        question = {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 40, **REPEATS}
        whole = own_client.post("/v1/chat/completions", json={**question, "top_p": 0.95}).json()
        assert text == whole["choices"][0]["message"]["content"], "nothing is lost or doubled"
        assert 0 < len("".join(drafts)) < len(text)
        assert "coloured: drafts" in page.inner_text(".turn.assistant .meta")
        page.wait_for_function("() => /draft tokens accepted/.test(document.getElementById('drafts').textContent)")  # fmt: skip
        assert not problems
        browser.close()
