"""Draws a profile of `lib.bench.measure.flame` as an icicle. Introduced in chapter 8."""

from __future__ import annotations

from matplotlib.axes import Axes

from lib.bench.measure.flame import KINDS, PYTHON, Frame, kind
from lib.bench.notebook.style import COLOURS, ON_COLOUR


def draw(ax: Axes, root: Frame, seconds: float, depth: int = 10, least: float = 0.004) -> None:
    """An icicle: the step on top, callees below, a frame as wide as its share of `seconds` (of one call), in milliseconds.

    Frames narrower than `least` of the axis are left out.
    """
    order = [name for name, _ in KINDS] + [PYTHON]
    width_ms = 1e3 * root.seconds / root.calls
    deepest = _rows(
        ax, root, 0.0, 1e3 / root.calls, 0, depth, least * max(width_ms, 1e3 * seconds), order
    )
    ax.set(xlim=(0, 1e3 * seconds), ylim=(-deepest - 0.05, 1.05), yticks=[])
    ax.grid(False)
    ax.spines["left"].set_visible(False)
    for i, name in enumerate(order):
        ax.barh([0], [0], color=COLOURS[i], label=name)


def _rows(
    ax: Axes,
    frame: Frame,
    left: float,
    ms: float,
    row: int,
    depth: int,
    least: float,
    order: list[str],
) -> int:
    width = frame.seconds * ms
    ax.barh(
        -row,
        width,
        0.94,
        left=left,
        align="edge",
        color=COLOURS[order.index(kind(frame))],
        alpha=1.0 if not frame.children else 0.75,
        linewidth=0.4,
        edgecolor=ON_COLOUR,
    )
    span = ax.get_figure(root=True).get_figwidth() * 72 * 0.95  # points
    share = width / max(1e-9, least) * 0.004
    # The function without its module; the root is no function.
    label = (
        frame.name.rpartition(".")[2]
        if frame.native
        else frame.name.partition(".")[2] or frame.name
    )
    if share * span > 4.6 * len(label):
        ax.text(
            left + width / 2,
            -row + 0.45,
            label,
            ha="center",
            va="center",
            fontsize=7,
            color=ON_COLOUR,
            clip_on=True,
        )
    deepest = row
    if row + 1 < depth:
        for child in sorted(frame.children.values(), key=lambda child: -child.seconds):
            if child.seconds * ms >= least:
                deepest = max(deepest, _rows(ax, child, left, ms, row + 1, depth, least, order))
                left += child.seconds * ms
    return deepest
