"""Percentiles, and a Timing's arithmetic."""

import pytest
import torch

from lib.bench.measure.percentiles import percentile
from lib.bench.measure.timing import Timing


def test_percentiles_against_torch():
    samples = [0.3, 0.1, 0.9, 0.5, 0.2, 0.7]
    for q in (0, 10, 50, 90, 100):
        assert percentile(samples, q) == pytest.approx(
            torch.tensor(samples).double().quantile(q / 100).item()
        )
    timing = Timing((4.0, 1.0, 2.0))
    assert (timing.median, timing.rate(10)) == (2.0, 5.0)
    assert timing.rates(8).median == 4.0 and timing.rates(8).samples == (2.0, 8.0, 4.0)
    for bad in (([], 50), ([1.0], 101), ([1.0], -1)):
        with pytest.raises(ValueError):
            percentile(*bad)
