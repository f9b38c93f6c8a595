"""Draws a profile of `lib.bench.measure.flame` as an icicle. Introduced in chapter 8."""

from __future__ import annotations

from matplotlib.axes import Axes

from lib.bench.measure.flame import KINDS, PYTHON, Frame, by_kind, kind
from lib.bench.notebook.style import COLOURS, ON_COLOUR, TEXT

_PALE = 0.16  # opacity of time that belongs to the frames below


def draw(ax: Axes, root: Frame, seconds: float, depth: int = 10, least: float = 0.004) -> None:
    """An icicle: the step on top, callees below, a frame as wide as its share of `seconds` (of one call), in milliseconds.

    A frame is pale where its time belongs to the frames below it, and has the colour of its kind at its right end, where
    the time is its own. The lowest row that is drawn has the colours of all that lies deeper. So each millisecond has
    its colour once. Frames narrower than `least` of the axis are left out.
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
    lowest = row + 1 >= depth
    shares = by_kind(frame) if lowest else {kind(frame): frame.own / (frame.seconds or 1.0)}
    pale = width * max(0.0, 1 - sum(shares.values()))
    style = {"height": 0.94, "align": "edge", "linewidth": 0.4}
    ax.barh(-row, pale, left=left, color=TEXT, alpha=_PALE, edgecolor=TEXT, **style)
    at = left + pale
    for name, share in shares.items():
        colour = COLOURS[order.index(name)]
        ax.barh(-row, share * width, left=at, color=colour, edgecolor=ON_COLOUR, **style)
        at += share * width
    span = ax.get_figure(root=True).get_figwidth() * 72 * 0.95  # points
    share = width / max(1e-9, least) * 0.004
    # The function without its module; the root is no function.
    label = (
        frame.name.rpartition(".")[2]
        if frame.native
        else frame.name.partition(".")[2] or frame.name
    )
    if share * span > 5.2 * len(label):
        ax.text(
            left + width / 2,
            -row + 0.45,
            label,
            ha="center",
            va="center",
            fontsize=8,
            color=TEXT if pale > width / 2 else ON_COLOUR,
            clip_on=True,
        )
    deepest = row
    if not lowest:
        for child in sorted(frame.children.values(), key=lambda child: -child.seconds):
            if child.seconds * ms >= least:
                deepest = max(deepest, _rows(ax, child, left, ms, row + 1, depth, least, order))
                left += child.seconds * ms
    return deepest
