"""A fleet on a Ray cluster of this process, for tests; take the fixture with `pytest_plugins = ["tests.fleet_ray"]`."""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from importlib.util import find_spec

import httpx
import psutil
import pytest

from lib.loadtest.client import Target
from lib.loadtest.requests import LoadRequest
from lib.loadtest.run import closed_loop

needs_ray = [
    pytest.mark.skipif(
        find_spec("ray") is None, reason="ray is not installed: pip install -e '.[fleet]'"
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

    port = free_port()
    # Seconds between two reports of the front's load to the autoscaler; Ray Serve's own are ten.
    os.environ["RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "1"
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


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def replicas():
    """Processes of this cluster's engines."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            name = " ".join(process.cmdline())
            if name.startswith("ray::ServeReplica") and ":Engine" in name:
                found.append(process)
    return found


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
