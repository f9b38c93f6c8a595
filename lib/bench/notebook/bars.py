"""Horizontal bars: in groups, or stacked to 100 %. Introduced in chapter 1."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from lib.bench.notebook.axes import percent_axis
from lib.bench.notebook.style import COLOURS, ON_COLOUR, TEXT


def bars(
    ax: Axes,
    labels: Sequence[str],
    values: Mapping[str, Sequence[float]],
    fmt: str = ",.3g",
    outlined: int | None = None,
) -> None:
    """Horizontal bars, one group per label and one colour per series, each with its number at its end.

    outlined: the row whose bars have only their outline, because they are computed and not measured.
    """
    height = 0.8 / len(values)
    for i, (name, series) in enumerate(values.items()):
        at = [row + (i - (len(values) - 1) / 2) * height for row in range(len(labels))]
        drawn = ax.barh(at, series, height * 0.88, color=COLOURS[i % len(COLOURS)], label=name)
        ax.bar_label(drawn, [format(value, fmt) for value in series], padding=4, fontsize=8.5)
        if outlined is not None:
            drawn[outlined].set(fill=False, edgecolor=COLOURS[i % len(COLOURS)], linewidth=1.4)
    _rows(ax, labels)
    ax.margins(x=0.12)
    if len(values) > 1:
        _bar_legend(ax)


def stacked_bars(
    ax: Axes, labels: Sequence[str], shares: Mapping[str, Sequence[float]], least: float = 0.06
) -> None:
    """Horizontal bars of 100 %, split by series: fractions of 1. A part of at least `least` shows its percentage."""
    left = [0.0] * len(labels)
    for i, (name, series) in enumerate(shares.items()):
        colour = TEXT if i >= len(COLOURS) else COLOURS[i]
        drawn = ax.barh(range(len(labels)), series, 0.62, left=left, color=colour, label=name)
        ax.bar_label(drawn, [f"{100 * value:.0f}\u00a0%" if value >= least else "" for value in series],
                     label_type="center", fontsize=8.5, color=ON_COLOUR)  # fmt: skip
        left = [a + b for a, b in zip(left, series)]
    _rows(ax, labels)
    ax.set_xlim(0, 1)
    percent_axis(ax, "x")
    _bar_legend(ax)


def _rows(ax: Axes, labels: Sequence[str]) -> None:
    ax.set_yticks(range(len(labels)), labels)
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.spines["left"].set_visible(False)


def _bar_legend(ax: Axes) -> None:
    fig = ax.get_figure(root=True)
    handles, names = ax.get_legend_handles_labels()
    if not fig.legends:
        fig.legend(
            handles, names, loc="outside upper left", ncols=min(len(names), 6), handlelength=1.0
        )
