"""Arrival times: seeded, with the mean and the spread asked for."""

from __future__ import annotations

import pytest

from lib.loadtest.arrivals import arrival_times


def test_arrivals():
    assert arrival_times("burst", 3) == [0, 0, 0]
    assert arrival_times("steady", 3, rate=4) == [0, 0.25, 0.5]
    poisson = arrival_times("poisson", 4001, rate=10, seed=3)
    assert (
        poisson
        == arrival_times("poisson", 4001, rate=10, seed=3)
        != arrival_times("poisson", 4001, rate=10, seed=4)
    )
    assert poisson == arrival_times("gamma", 4001, rate=10, burstiness=1.0, seed=3)
    for kind, burstiness, variation in (
        ("poisson", 1.0, 1.0),
        ("gamma", 0.25, 4.0),
        ("gamma", 16.0, 1 / 16),
    ):
        times = arrival_times(kind, 4001, rate=10, burstiness=burstiness, seed=1)
        gaps = [b - a for a, b in zip(times, times[1:])]
        mean = sum(gaps) / len(gaps)
        squared = sum((gap - mean) ** 2 for gap in gaps) / len(gaps) / mean**2
        assert times[0] == 0 and min(gaps) >= 0
        assert mean == pytest.approx(0.1, rel=0.1) and squared == pytest.approx(variation, rel=0.2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("often", 3, {}),
        ("burst", 0, {}),
        ("steady", 3, {}),
        ("poisson", 3, {"rate": 0}),
        ("gamma", 3, {"rate": 1, "burstiness": -1.0}),
        ("steady", 3, {"rate": float("nan")}),
    ],
)
def test_bad_arrivals(arguments):
    kind, n, options = arguments
    with pytest.raises(ValueError, match="must be"):
        arrival_times(kind, n, **options)
