"""Two real replicas on Ray Serve under load: one outcome per request, prefixes, drain, and a replica that is killed."""

from __future__ import annotations

import os
import re
import signal
import threading
import time

import httpx
import pytest

from lib import SamplingParams
from tests.fleet_ray import ENGINE, hits, load, needs_ray, prompts_of, replicas

pytest_plugins = ["tests.fleet_ray"]
pytestmark = needs_ray


def test_answers_are_those_of_one_engine_and_prefixes_are_found(fleet, llama):
    url, _ = fleet
    prompts = prompts_of(groups=6, each=6)
    llm = llama.engine(**{k: v for k, v in ENGINE.items() if k != "device"})
    params = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
    expected = [llm.generate([prompt], params)[0] for prompt in prompts]
    alone = sum(o.num_cached_tokens for o in expected) / sum(map(len, prompts))
    traces = load(url, prompts)
    assert [t.outcome for t in traces] == ["completed"] * len(prompts)
    before = hits(url)
    assert len(before) == 2 and all(queries > 0 for _, queries in before.values())
    rate = sum(h for h, _ in before.values()) / sum(q for _, q in before.values())
    assert rate >= 0.9 * alone
    body = {"model": "tiny", "prompt": prompts[0], "max_tokens": 6, "temperature": 0, "ignore_eos": True, "return_token_ids": True}  # fmt: skip
    answer = httpx.post(url + "/v1/completions", json=body, timeout=120).json()
    assert answer["choices"][0]["token_ids"] == expected[0].token_ids


def test_errors_of_a_replica_come_through(fleet):
    url, _ = fleet
    answer = httpx.post(
        url + "/v1/completions", json={"prompt": [1], "max_tokens": -1}, timeout=120
    )
    assert answer.status_code == 400 and "max_tokens" in answer.json()["error"]["message"]
    assert httpx.get(url + "/health", timeout=120).json() == {"status": "ok"}
    assert httpx.get(url + "/nothing", timeout=120).status_code == 404


def aborted(url):
    """Sequences that were aborted, in all replicas."""
    text = httpx.get(url + "/metrics", timeout=120).text
    pattern = r'^vllm:request_success_total\{.*finished_reason="abort".*\} (\S+)$'
    return sum(map(float, re.findall(pattern, text, re.M)))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_ends_its_sequences(fleet, stream):
    url, _ = fleet
    before = aborted(url)
    body = {"prompt": [5] * 20, "max_tokens": 230, "stream": stream, "ignore_eos": True, "n": 4}
    try:
        with httpx.stream("POST", url + "/v1/completions", json=body, timeout=0.2) as answer:
            assert stream
            next(answer.iter_lines())
    except httpx.ReadTimeout:  # before the whole answer, or the first event
        pass
    deadline = time.monotonic() + 60
    while aborted(url) < before + 4:
        assert time.monotonic() < deadline, "the sequences were not aborted"
        time.sleep(0.2)


def test_a_replica_that_is_taken_away_finishes_its_requests(fleet):
    url, deploy = fleet
    found = []
    user = threading.Thread(target=lambda: found.extend(load(url, prompts_of(8, 4), 40, 8)))
    user.start()
    time.sleep(1.0)
    deploy(1)
    user.join()
    assert [t.outcome for t in found] == ["completed"] * 32
    deploy(2)


def test_a_killed_replica_fails_only_what_had_begun(fleet):
    url, _ = fleet
    victims = replicas()
    assert len(victims) == 2
    found = []
    user = threading.Thread(target=lambda: found.extend(load(url, prompts_of(10, 4), 120, 10)))
    user.start()
    time.sleep(2.0)
    os.kill(victims[0].pid, signal.SIGKILL)
    user.join()
    outcomes = [t.outcome for t in found]
    failed = [t for t in found if t.outcome != "completed"]
    assert len(outcomes) == 40 and outcomes.count("completed") >= 40 - ENGINE["max_num_seqs"]
    # They had begun, and their clients were told.
    assert all(t.outcome == "failed" and t.chunks for t in failed), failed
    assert all("replica has ended" in t.error for t in failed), failed
    deadline = time.monotonic() + 240  # Ray Serve starts another one
    while len(hits(url)) < 2 and time.monotonic() < deadline:
        time.sleep(1.0)
    assert len(hits(url)) == 2


def test_a_full_fleet_says_503_and_when_to_come_again(fleet):
    url, deploy = fleet
    deploy(1, max_concurrent_requests=1, max_queued=1)
    body = {"prompt": [5] * 20, "max_tokens": 200, "ignore_eos": True}
    answers = []
    users = [
        threading.Thread(
            target=lambda: answers.append(
                httpx.post(url + "/v1/completions", json=body, timeout=240)
            )
        )
        for _ in range(8)
    ]
    for user in users:
        user.start()
    for user in users:
        user.join()
    by_status = {status: [a for a in answers if a.status_code == status] for status in (200, 503)}
    assert len(by_status[200]) + len(by_status[503]) == 8 and all(by_status.values())
    assert all(a.headers["Retry-After"] == "1" for a in by_status[503])
    assert {a.json()["error"]["code"] for a in by_status[503]} == {"overloaded"}
