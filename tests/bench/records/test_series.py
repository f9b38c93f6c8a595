"""A Series: plain, finite data, or an error that names the place."""

import math

import numpy as np
import pytest
import torch

from lib.bench.measure.timing import Timing
from lib.bench.records.series import make_series


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), torch.tensor(math.inf),
                                   Timing((1.0, math.nan))])  # fmt: skip
def test_no_nan_and_no_infinity(value):
    with pytest.raises(ValueError, match="toy"):
        make_series("toy", "s", columns={"x": [1.0, value]})


def test_nan_in_samples_alone_is_found_too():
    with pytest.raises(ValueError, match=r"toy.x samples\[0\]\[3\] is nan"):
        make_series("toy", "s", columns={"x": [_Hidden((1.0, 1.0, 1.0, math.nan))]})


class _Hidden(Timing):
    @property
    def median(self):
        return 1.0


@pytest.mark.parametrize("arguments, message", [
    (dict(name=" ", unit="s", columns={"x": [1]}), "non-empty"),
    (dict(name="toy", unit="", columns={"x": [1]}), "unit"),
    (dict(name="toy", unit="s", columns={"": [1]}), "column of toy"),
    (dict(name="toy", unit="s", columns={"x": [1], "y": [1, 2]}), "differ in length"),
    (dict(name="toy", unit="s", columns={"x": []}), "no data"),
    (dict(name="toy", unit="s", points=[]), "no data"),
    (dict(name="toy", unit="s"), "either"),
    (dict(name="toy", unit="s", columns={"x": [1]}, points=[{"x": 1}]), "either"),
    (dict(name="toy", unit="s", points=[{"x": 1}, {"y": 1}]), "point 1"),
    (dict(name="toy", unit="s", columns={"x": [object()]}), "object"),
    (dict(name="toy", unit="s", columns={"x": [1]}, params={"p": math.nan}), "params.p"),
])  # fmt: skip
def test_series_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_series(**arguments)


def test_points_are_columns_by_rows():
    points = [{"batch": 1, "rate": 2.0}, {"batch": 2, "rate": 3.5}]
    series = make_series("toy", "1/s", points=points)
    assert series.columns == {"batch": [1, 2], "rate": [2.0, 3.5]} and series.rows() == points
