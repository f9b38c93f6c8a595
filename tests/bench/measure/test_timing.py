"""Timing: warm-up, repeats, set-up and budget."""

import time

import pytest

from lib.bench.measure.timing import measure, timed


def test_measure_counts_runs_and_leaves_setup_out():
    calls = []

    def setup():
        time.sleep(0.03)
        return len(calls)

    timing = measure(calls.append, setup=setup, warmup=2, repeats=3, device="cpu")
    assert calls == [0, 1, 2, 3, 4] and len(timing.samples) == 3 and max(timing.samples) < 0.03


def test_measure_stops_at_its_budget_but_never_without_a_sample():
    timing = measure(lambda: time.sleep(0.02), warmup=0, repeats=50, budget=0.05, device="cpu")
    assert 1 <= len(timing.samples) <= 3
    assert (
        len(
            measure(
                lambda: time.sleep(0.02), warmup=0, repeats=50, budget=0.001, device="cpu"
            ).samples
        )
        == 1
    )
    assert timing.median >= 0.02


@pytest.mark.parametrize(
    "bad", [{"repeats": 0}, {"warmup": -1}, {"clock": "sun"}, {"clock": "events"}]
)
def test_measure_refuses(bad):
    with pytest.raises(ValueError):
        measure(lambda: None, device="cpu", **bad)


def test_timed_block():
    with timed("cpu") as watch:
        time.sleep(0.02)
    assert 0.02 <= watch.seconds < 5
