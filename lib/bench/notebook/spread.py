"""The spread of repeats in a figure: a thin bar from the lowest sample to the highest, through the median's marker.

Introduced in chapter 3.
"""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.text import Annotation

from lib.bench.notebook.style import COLOURS, TEXT

_ON_ROW = 0.1  # a number this near to a row's middle stands at the end of that row's bar


def spread(ax: Axes, x: Sequence[float], y: Sequence[Any], index: int = 0) -> None:
    """Vertical bars over the points of a curve, in the colour of its series. `y`: each point's samples, a list.

    A point with one sample, or with a number in place of a list, gets no bar.
    """
    for at, samples in zip(x, y):
        if isinstance(samples, Sequence) and len(samples) > 1:
            colour = COLOURS[index % len(COLOURS)]
            ax.vlines(at, min(samples), max(samples), color=colour, linewidth=1.4, zorder=4)


def spread_of_bars(ax: Axes, y: Sequence[Any], shift: float = 0.0) -> None:
    """The same over horizontal bars, one for each row. A bar's number moves to the right of its line.

    shift: how far the bars lie below the middle of their rows, where a row has several.
    """
    numbers = [text for text in ax.texts if isinstance(text, Annotation)]
    for i, samples in enumerate(y):
        row = i + shift
        if isinstance(samples, Sequence) and len(samples) > 1:
            low, high = min(samples), max(samples)
            ax.hlines(row, low, high, color=TEXT, linewidth=1.6, zorder=4)
            for text in numbers:
                length, at = text.xy
                if abs(at - row) < _ON_ROW and low <= length < high:
                    text.xy = (high, at)
