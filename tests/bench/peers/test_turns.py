"""Contestants take turns, and have room for their work."""

from __future__ import annotations

from lib.bench.measure.timing import Timing
from lib.bench.peers.turns import blocks_for, equal_work, in_turns


def test_contestants_take_turns():
    order = []
    timings = in_turns(
        {"a": lambda: order.append("a"), "b": lambda: Timing((5.0,))}, repeats=3, warmup=1
    )
    assert order == ["a"] * 4 and len(timings["a"].samples) == 3 and timings["b"].median == 5.0


def test_blocks_hold_the_work():
    work = equal_work(100, batch=3, prompt=5, new=28)
    assert blocks_for(work) == 1 + 3 * 3 and len(work) == 3
