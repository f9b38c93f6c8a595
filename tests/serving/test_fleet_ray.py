"""Two real replicas on Ray Serve under load: one outcome per request, prefixes, drain, and a replica that is killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from importlib.util import find_spec

import httpx
import psutil
import pytest

from lib import SamplingParams
from lib.loadtest.client import Target
from lib.loadtest.requests import LoadRequest
from lib.loadtest.run import closed_loop

pytestmark = [
    pytest.mark.skipif(
        find_spec("ray") is None, reason="ray is not installed: pip install -e .[fleet]"
    ),
    pytest.mark.slow,
    pytest.mark.timeout(1500),
]

ENGINE = {"attention": "gather", "num_blocks": 200, "max_model_len": 256, "max_num_seqs": 4, "device": "cpu", "dtype": "float32"}  # fmt: skip


@pytest.fixture(scope="module")
def fleet(llama):
    """(url, deploy): deploy(replicas, **options) makes it so, and returns when they answer."""
    import ray
    from ray import serve

    from lib.serving.fleet.deployment import application
    from lib.serving.fleet.options import from_mapping

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(num_cpus=4, include_dashboard=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    url = f"http://127.0.0.1:{port}"

    def deploy(replicas, **more):
        options = {**ENGINE, "model": str(llama.folder), "served_model_name": "tiny"}
        options |= {"replicas": replicas, "drain_timeout": 60.0, **more}
        serve.run(application(*from_mapping(options)))

    try:
        deploy(2)
        yield url, deploy
    finally:
        serve.shutdown()
        ray.shutdown()


def replicas():
    """Processes of the engine's replicas."""
    named = lambda p: " ".join(p.info["cmdline"] or []).startswith("ray::ServeReplica")  # noqa: E731
    found = [p for p in psutil.process_iter(["cmdline"]) if named(p)]
    return [p for p in found if ":Engine" in " ".join(p.info["cmdline"])]


def prompts_of(groups, each, shared=64, own=8):
    return [
        [1 + (group + 3 * i) % 50 for i in range(shared)] + [51 + (k + i) % 9 for i in range(own)]
        for k in range(each)
        for group in range(groups)
    ]


def load(url, prompts, max_tokens=6, concurrency=6):
    target = Target(url, model="tiny", stall_timeout=240)
    return closed_loop(target, [LoadRequest(p, max_tokens) for p in prompts], concurrency).traces


def hits(url):
    """{replica: (hits, queries)} from /metrics."""
    text, found = httpx.get(url + "/metrics", timeout=120).text, {}
    for kind in ("hits", "queries"):
        pattern = rf'^vllm:prefix_cache_{kind}_total\{{replica="([^"]+)".*\}} (\S+)$'
        for name, value in re.findall(pattern, text, re.M):
            found.setdefault(name, []).append(float(value))
    return found


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


def test_a_client_that_goes_frees_its_sequence(fleet):
    url, _ = fleet
    body = {"prompt": [5] * 20, "max_tokens": 230, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", url + "/v1/completions", json=body, timeout=120) as stream:
        next(stream.iter_lines())
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        text = httpx.get(url + "/metrics", timeout=120).text
        running = re.findall(r"^vllm:num_requests_running\{.*\} (\S+)$", text, re.M)
        if running and all(float(n) == 0 for n in running):
            return
        time.sleep(0.2)
    pytest.fail("the sequence still runs")


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
