"""The icicle of a call: frames, shares, and the cost of noting taken away."""

from __future__ import annotations

import itertools
import sys
import time

import pytest
import torch

from lib.bench.measure import flame


def inner(x):
    return torch.nn.functional.linear(x, x)


def outer(x):
    for _ in range(3):
        inner(x)
    time.sleep(0.01)


def test_stacks_are_added_up_and_named():
    x = torch.ones(4, 4)
    root = flame.record(lambda: outer(x), repeats=2)
    assert sys.getprofile() is None
    frame = root.find("outer")
    assert (frame.calls, frame.find("inner").calls) == (2, 6)
    linear = frame.find("_nn.linear")
    assert (
        linear.native
        and flame.kind(linear) == "matrix products"
        and flame.kind(frame) == flame.PYTHON
    )
    assert frame.find("sleep").seconds >= 0.02 * 0.9
    assert frame.seconds >= sum(child.seconds for child in frame.children.values())


def test_the_hook_is_gone_after_an_error():
    with pytest.raises(ZeroDivisionError):
        flame.record(lambda: 1 / 0)
    assert sys.getprofile() is None


def test_shares_sum_to_one_and_splicing_keeps_the_time():
    x = torch.ones(4, 4)
    root = flame.record(lambda: outer(x))
    assert sum(flame.by_kind(root).values()) == pytest.approx(1)
    short = flame.splice(root, ("inner", "<lambda>"))
    assert short.find("inner") is None and short.find("_nn.linear").calls == 15
    assert short.seconds == root.seconds and short.find("outer").seconds == pytest.approx(
        root.find("outer").seconds
    )


def test_noting_is_taken_away(monkeypatch):
    """With a clock that advances at each reading, noting a call costs two units and making it costs nothing."""

    def many():
        for _ in range(20000):
            abs(1)

    readings = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(readings)))
    noted = flame.record(many, repeats=3)
    assert noted.find("abs").calls == 3 * 20000
    assert noted.seconds < 0.1 * next(readings)
