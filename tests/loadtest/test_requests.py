"""The requests of a load test."""

from __future__ import annotations

import pytest

from lib.loadtest.client import Target
from lib.loadtest.requests import PREFIX, WORKLOADS, make_requests


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("text", [False, True])
def test_workloads(workload, text):
    made = make_requests(workload, 20, max_tokens=30, vocab_size=200, text=text, seed=5)
    assert made == make_requests(workload, 20, max_tokens=30, vocab_size=200, text=text, seed=5)
    assert made != make_requests(workload, 20, max_tokens=30, vocab_size=200, text=text, seed=6)
    prompts = [r.prompt.split() if text else r.prompt for r in made]
    lengths, fixed = (
        [len(p) for p in prompts],
        {"short": 6, "medium": 28, "long": 56, "shared-prefix": PREFIX + 28},
    )
    assert (
        set(lengths) == {fixed[workload]}
        if workload in fixed
        else 8 <= min(lengths) < max(lengths) <= 400
    )
    assert len({str(p) for p in prompts}) == 20
    if workload == "chat":
        assert 1 <= min(r.max_tokens for r in made) < max(r.max_tokens for r in made) <= 30
    else:
        assert {r.max_tokens for r in made} == {30}
    if workload == "shared-prefix":
        assert len({str(p[:PREFIX]) for p in prompts}) == 1
    if not text:
        assert all(0 <= i < 200 for p in prompts for i in p)


def test_bad_workloads_and_targets():
    for make in (
        lambda: make_requests("odd", 3),
        lambda: make_requests("short", 0),
        lambda: make_requests("short", 3, max_tokens=0),
        lambda: Target("localhost:8000"),
        lambda: Target("http://x", timeout=0),
        lambda: Target("http://x", stall_timeout=-1),
    ):
        with pytest.raises(ValueError, match="must"):
            make()
    assert Target("http://x:1/v1/").base == Target("http://x:1").base == "http://x:1"
