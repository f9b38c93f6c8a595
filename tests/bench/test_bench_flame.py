"""The icicle of a call: frames, shares, and what noting costs taken away again."""

from __future__ import annotations

import sys
import time

import pytest
import torch

from lib.bench.measure import flame
from lib.bench.measure.timing import Timing
from lib.bench.notebook import figures
from lib.bench.notebook.flame_figure import draw
from lib.bench.peers.compare import blocks_for, equal_work, in_turns


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


def test_noting_is_taken_away():
    def many():
        for _ in range(20000):
            abs(1)

    start = time.perf_counter()
    many()
    alone = time.perf_counter() - start
    noted = flame.record(many, repeats=3)
    assert noted.seconds / noted.calls < 3 * alone + 0.01, (
        "20,000 notes take several times as long as the calls"
    )


def test_it_draws():
    fig, ax = figures.figure()
    root = flame.record(lambda: outer(torch.ones(4, 4)))
    draw(ax, root, root.seconds / root.calls)
    assert len(ax.patches) >= 3 and ax.get_legend_handles_labels()[1] == [
        *(name for name, _ in flame.KINDS),
        flame.PYTHON,
    ]


def test_contestants_take_turns():
    order = []
    timings = in_turns(
        {"a": lambda: order.append("a"), "b": lambda: Timing((5.0,))}, repeats=3, warmup=1
    )
    assert order == ["a"] * 4 and len(timings["a"].samples) == 3 and timings["b"].median == 5.0


def test_blocks_hold_the_work():
    work = equal_work(100, batch=3, prompt=5, new=28)
    assert blocks_for(work) == 1 + 3 * 3 and len(work) == 3
