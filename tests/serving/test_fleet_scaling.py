"""A fleet on Ray Serve that changes under load: more replicas, fewer, and all of them new ones."""

from __future__ import annotations

import threading
import time

from tests.fleet_ray import hits, load, needs_ray, prompts_of, replicas

pytest_plugins = ["tests.fleet_ray"]
pytestmark = needs_ray


class Users:
    """`with Users(url, 8) as users:` keeps 8 requests in flight, until the block ends; then `users.traces` has them all."""

    def __init__(self, url, number):
        self.url, self.number, self.traces = url, number, []

    def __enter__(self):
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()

    def _run(self):
        while not self._end.is_set():
            self.traces += load(self.url, prompts_of(self.number, 2), 60, self.number)

    @property
    def outcomes(self):
        return {trace.outcome for trace in self.traces}


def wait_until(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_second_replica_comes_with_the_load_and_drains_without_losing_a_request(fleet):
    url, deploy = fleet
    scaling = {"max_replicas": 2, "target_requests": 2.0, "upscale_delay": 1.0, "downscale_delay": 2.0}  # fmt: skip
    deploy(1, policy="round_robin", **scaling)
    wait_until(lambda: len(replicas()) == 1)
    with Users(url, 8) as many:
        wait_until(lambda: len(found := hits(url)) == 2 and all(q > 0 for _, q in found.values()))
    with Users(url, 1) as one:  # in turn to both, so that the one that leaves has requests
        wait_until(lambda: len(replicas()) == 1)
        wait_until(lambda: len(hits(url)) == 1)
    assert many.outcomes == one.outcomes == {"completed"}


def test_a_rolling_update_loses_nothing(fleet):
    url, deploy = fleet
    deploy(2)
    before = set(hits(url))
    with Users(url, 6) as users:
        time.sleep(1.0)
        deploy(2, max_num_batched_tokens=64)
        wait_until(lambda: len(new := set(hits(url))) == 2 and new.isdisjoint(before))
    assert len(before) == 2 and users.outcomes == {"completed"}
