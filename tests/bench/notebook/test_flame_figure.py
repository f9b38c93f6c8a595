"""The icicle as a figure."""

from __future__ import annotations

import time

import torch

from lib.bench.measure import flame
from lib.bench.measure.flame import Frame
from lib.bench.notebook import figures
from lib.bench.notebook.flame_figure import draw


def inner(x):
    return torch.nn.functional.linear(x, x)


def outer(x):
    for _ in range(3):
        inner(x)
    time.sleep(0.01)


def test_the_root_has_its_label():
    """Wide frames are labelled with the function's name, the root with its own: it has no module."""
    child = Frame("module.forward", calls=1, seconds=0.9)
    root = Frame("step", calls=1, seconds=1.0, children={"module.forward": child})
    fig, ax = figures.figure()
    draw(ax, root, 1.0)
    assert [text.get_text() for text in ax.texts] == ["step", "forward"]


def test_it_draws():
    fig, ax = figures.figure()
    root = flame.record(lambda: outer(torch.ones(4, 4)))
    draw(ax, root, root.seconds / root.calls)
    assert len(ax.patches) >= 3 and ax.get_legend_handles_labels()[1] == [
        *(name for name, _ in flame.KINDS),
        flame.PYTHON,
    ]
