"""Two real servers behind the front, without Ray Serve: one outcome per request, hit rates, drain, and SIGKILL."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import httpx
import pytest

from lib import SamplingParams
from lib.bench.paths import repository
from lib.loadtest.client import Target
from lib.loadtest.requests import LoadRequest
from lib.loadtest.run import closed_loop
from lib.serving.fleet.routing import make_router
from lib.serving.server_process import ServerProcess
from tests.fleet_processes import ProcessFleet

pytestmark = pytest.mark.slow

ENGINE = {"attention": "gather", "num_blocks": 200, "max_model_len": 256, "max_num_seqs": 4}


@pytest.fixture(scope="module")
def start(llama):
    """start(n): n new servers that are ready. They end with the module, if not before."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in ENGINE.items()]
    flags += [f"--model={llama.folder}", "--device=cpu", "--served-model-name=tiny"]
    with ExitStack() as stack:

        def start(number: int) -> list[ServerProcess]:
            servers = [ServerProcess(*flags) for _ in range(number)]
            for server in servers:  # they load at the same time
                server.start()
                stack.callback(server.stop)
            for server in servers:
                server.wait_ready()
            return servers

        yield start


@pytest.fixture(scope="module")
def pair(start):
    return start(2)


def fleet_of(servers, policy="longest_prefix", **options):
    if policy == "longest_prefix":
        options = {"min_match": 1, **options}
    names = dict(zip("ab", (server.url for server in servers)))
    return ProcessFleet(names, make_router(policy, **options))


def prompts_of(groups, each, salt, shared=64, own=8):
    """Prompts with `groups` beginnings, `each` per beginning; another salt gives others."""
    beginnings = [[3 + (salt * 11 + g * 7 + i * (g + 1)) % 50 for i in range(shared)] for g in range(groups)]  # fmt: skip
    return [b + [3 + (k + i) % 9 for i in range(own)] for k in range(each) for b in beginnings]


def load(url, prompts, max_tokens=6, concurrency=6):
    target = Target(url, model="tiny", stall_timeout=120)
    return closed_loop(target, [LoadRequest(p, max_tokens) for p in prompts], concurrency).traces


def counted(servers):
    """(prompt tokens found in prefix caches, prompt tokens looked up) of all servers together, by one look at each."""
    texts = [httpx.get(server.url + "/metrics").text for server in servers]
    patterns = [
        rf"^vllm:prefix_cache_{kind}_total(?:\{{.*\}})? (\S+)$" for kind in ("hits", "queries")
    ]
    return [sum(float(re.search(p, text, re.M)[1]) for text in texts) for p in patterns]


def hits(servers):
    """`counted`, once it no longer changes: a server counts a step a moment after it has sent the answers."""
    found, deadline = None, time.monotonic() + 60
    while (now := counted(servers)) != found:
        assert time.monotonic() < deadline
        found = now
        time.sleep(0.5)
    return found


def hit_rate(servers, send):
    before = hits(servers)
    result = send()
    hit, looked_up = (after - start for after, start in zip(hits(servers), before))
    return hit / looked_up, result


def test_the_load_generator_gets_one_outcome_per_request(pair, tmp_path):
    out = tmp_path / "run.json"
    with fleet_of(pair) as fleet:
        command = [sys.executable, "-m", "lib.loadtest", "--url", fleet.url]
        command += ["--concurrency", "8", "--num-requests", "32", "--max-tokens", "6"]
        command += ["--vocab-size", "61", "--workload", "shared-prefix", "--out", str(out)]
        done = subprocess.run(command, cwd=repository(), capture_output=True, text=True, timeout=240)  # fmt: skip
        assert set(fleet.sent) == {"a", "b"}
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = json.loads(out.read_text())["runs"]
    assert [request["outcome"] for request in run["requests"]] == ["completed"] * 32
    assert sorted(request["index"] for request in run["requests"]) == list(range(32))
    assert [request["output_tokens"] for request in run["requests"]] == [6] * 32


def test_prefix_routing_finds_what_one_replica_would(pair, llama):
    """Counted. In turn, each beginning is computed at both replicas."""
    prompts = prompts_of(groups=5, each=6, salt=1)
    llm = llama.engine(**ENGINE)
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    outputs = [llm.generate([prompt], params)[0] for prompt in prompts]
    alone = sum(o.num_cached_tokens for o in outputs) / sum(map(len, prompts))
    with fleet_of(pair) as fleet:
        rate, traces = hit_rate(pair, lambda: load(fleet.url, prompts))
        assert set(fleet.sent) == {"a", "b"}
    assert [t.outcome for t in traces] == ["completed"] * len(prompts)
    assert rate >= 0.9 * alone
    others = prompts_of(groups=5, each=6, salt=2)
    with fleet_of(pair, "round_robin") as fleet:
        in_turn, _ = hit_rate(pair, lambda: load(fleet.url, others, concurrency=1))
    assert in_turn == pytest.approx(alone - 5 * 64 / sum(map(len, prompts)))
    assert in_turn < 0.9 * alone < rate


def test_a_server_that_drains_loses_nothing(pair, start):
    (leaving,) = start(1)
    prompts = prompts_of(groups=6, each=8, salt=3)
    traces = []
    with fleet_of([pair[0], leaving]) as fleet:
        user = threading.Thread(target=lambda: traces.extend(load(fleet.url, prompts, 40, 8)))
        user.start()
        wait_until(lambda: fleet.load["b"] > 0)
        leaving.signal(signal.SIGTERM)
        user.join()
        assert list(fleet.load) == ["a"]
    assert leaving.wait(60) == 0
    assert [t.outcome for t in traces] == ["completed"] * len(prompts)


def test_a_killed_server_fails_only_what_had_begun(pair, start):
    (victim,) = start(1)
    prompts = prompts_of(groups=6, each=8, salt=4)
    traces = []
    with fleet_of([pair[0], victim]) as fleet:
        user = threading.Thread(target=lambda: traces.extend(load(fleet.url, prompts, 120, 12)))
        user.start()
        wait_until(lambda: running(victim) > 0)
        victim.signal(signal.SIGKILL)
        user.join(180)
        assert not user.is_alive(), "a request hangs"
        assert len(fleet.sent) > len(prompts)  # some were sent again
    failed = [t for t in traces if t.outcome != "completed"]
    assert len(traces) == len(prompts) and 1 <= len(failed) <= ENGINE["max_num_seqs"]
    assert all(t.outcome == "failed" and t.chunks for t in failed), failed
    assert all("replica has ended" in t.error for t in failed), failed


def running(server):
    text = httpx.get(server.url + "/metrics").text
    return float(re.search(r"^vllm:num_requests_running(?:\{.*\})? (\S+)$", text, re.M)[1])


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
