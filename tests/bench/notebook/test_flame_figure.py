"""The icicle as a figure."""

from __future__ import annotations

import time

import pytest
import torch
from matplotlib.colors import to_hex

from lib.bench.measure import flame
from lib.bench.measure.flame import Frame
from lib.bench.notebook import figures
from lib.bench.notebook.flame_figure import draw
from lib.bench.notebook.style import COLOURS


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


def test_each_millisecond_has_its_colour_once():
    """Solid area is own time by kind; what belongs to the frames below is pale, so a parent hides nothing."""
    linear = Frame("torch._C._nn.linear", native=True, calls=1, seconds=0.8)
    child = Frame("module.forward", calls=1, seconds=0.9, children={linear.name: linear})
    root = Frame("step", calls=1, seconds=1.0, children={"module.forward": child})
    order = [*(name for name, _ in flame.KINDS), flame.PYTHON]
    for depth in (2, 10):
        fig, ax = figures.figure()
        draw(ax, root, 1.0, depth=depth)
        area = dict.fromkeys(order, 0.0)
        for bar in ax.patches:
            for name, colour in zip(order, COLOURS):
                if to_hex(bar.get_facecolor()) == colour and bar.get_alpha() is None:
                    area[name] += bar.get_width() / 1e3
        assert area["matrix products"] == pytest.approx(0.8), depth
        assert area[flame.PYTHON] == pytest.approx(0.2), depth


def test_it_draws():
    fig, ax = figures.figure()
    root = flame.record(lambda: outer(torch.ones(4, 4)))
    draw(ax, root, root.seconds / root.calls)
    assert len(ax.patches) >= 3 and ax.get_legend_handles_labels()[1] == [
        *(name for name, _ in flame.KINDS),
        flame.PYTHON,
    ]
