"""The book's figures: this run beside recorded runs and the published reference, always drawn the same way.

Colour and marker say which series a line is; the stroke says whose: solid with markers for this run, thin for a
recorded run, dashed for published figures.

Introduced in chapter 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator, PercentFormatter

from lib.bench.notebook.style import COLOURS, MARKERS, ON_COLOUR, TEXT, figure, save, show
from lib.bench.notebook.tables import table
from lib.bench.records.files import Run

__all__ = ["COLOURS", "ON_COLOUR", "TEXT", "bars", "bound", "figure", "lines", "log2_axis", "log10_axis",
           "percent_axis", "recorded_lines", "save", "show", "stacked_bars", "table"]  # fmt: skip

Line = tuple[Sequence[float], Mapping[str, Sequence[float | None]]]  # x and, by series, y
_RECORDED = ((0, ()), (0, (5, 1.2, 1, 1.2)), (0, (1, 1.2)), (0, (7, 1.2, 1, 1.2, 1, 1.2)))
_PUBLISHED = (0, (4, 2.4))
_BOUND = (0, (1, 1.8))


def recorded_lines(
    runs: Sequence[Run], measurement: str, x: str, y: Mapping[str, str]
) -> dict[str, Line]:
    """`recorded=` for `lines`: each run's columns, by its label. `y` maps a series' name to its column.

    Runs without that measurement, and columns that a run does not have, are left out.
    """
    result: dict[str, Line] = {}
    for run in runs:
        series = run[measurement]
        if series is None or x not in series:
            continue
        found = {name: series[column] for name, column in y.items() if column in series}
        if found:
            result[run.label] = (series[x], found)
    return result


def lines(
    ax: Axes,
    x: Sequence[float],
    y: Mapping[str, Sequence[float | None]],
    *,
    recorded: Mapping[str, Line] | None = None,
    reference: Mapping[str, Line] | None = None,
    label: str = "this run",
) -> None:
    """Draws this run's series over `x`, and the same series of others. None is a gap: no such measurement.

    The legend is the figure's own, above the panels for series and below for runs; panels share it.
    """
    names = list(y)
    for _, series in (*(recorded or {}).values(), *(reference or {}).values()):
        names += [name for name in series if name not in names]
    for i, (run, (xs, series)) in enumerate((recorded or {}).items()):
        for name, ys in series.items():
            _line(
                ax,
                xs,
                ys,
                names.index(name),
                run,
                linestyle=_RECORDED[i % len(_RECORDED)],
                linewidth=1.2,
                zorder=2,
            )
    for run, (xs, series) in (reference or {}).items():
        for name, ys in series.items():
            _line(ax, xs, ys, names.index(name), run, linestyle=_PUBLISHED, linewidth=1.4, zorder=2)
    for name, ys in y.items():
        drawn = _line(
            ax,
            x,
            ys,
            names.index(name),
            label,
            marker=MARKERS[names.index(name) % len(MARKERS)],
            zorder=3,
        )
        drawn.set_label(name)
    _legends(ax.get_figure(root=True))


def _line(
    ax: Axes, x: Sequence[float], y: Sequence[float | None], index: int, run: str, **style: Any
) -> Line2D:
    values = [float("nan") if value is None else value for value in y]
    (drawn,) = ax.plot(x, values, color=COLOURS[index % len(COLOURS)], label="_", **style)
    return _tag(drawn, run, style.get("linestyle", "-"))


def _tag(line: Line2D, run: str, stroke: Any) -> Line2D:
    """Notes on the line whose it is and how it is drawn, for the legend of runs."""
    line.book_run, line.book_stroke = run, stroke
    return line


def _legends(fig: Figure) -> None:
    """Rebuilds the figure's two legends from all that is drawn in it."""
    for legend in list(fig.legends):
        legend.remove()
    drawn = [line for ax in fig.axes for line in ax.lines if hasattr(line, "book_run")]
    series = {line.get_label(): line for line in drawn if not line.get_label().startswith("_")}
    runs: dict[str, Line2D] = {}
    for line in sorted(drawn, key=lambda line: line.get_label().startswith("_")):  # this run first
        runs.setdefault(line.book_run, line)
    if len(series) > 1 or (len(runs) > 1 and series):
        fig.legend(
            series.values(), series.keys(), loc="outside upper left", ncols=min(len(series), 4)
        )
    if len(runs) > 1:
        keys = [
            Line2D([], [], color=TEXT, linestyle=line.book_stroke, linewidth=line.get_linewidth(),
                   marker="" if line.get_label().startswith("_") else "o")
            for line in runs.values()
        ]  # fmt: skip
        fig.legend(
            keys, runs.keys(), loc="outside lower left", ncols=len(runs) if len(runs) <= 3 else 2
        )


def bound(ax: Axes, x: Sequence[float] | None, y: Sequence[float] | float, text: str) -> None:
    """A predicted limit, dotted: a number (`x` None) with its name on it, or a curve over `x`, named in the legend."""
    if x is None:
        ax.axhline(y, color=TEXT, linestyle=_BOUND, linewidth=1.6, zorder=1)
        ax.annotate(text, (0, y), xycoords=ax.get_yaxis_transform(), xytext=(4, 3), textcoords="offset points",
                    fontsize=8.5, va="bottom")  # fmt: skip
        return
    (drawn,) = ax.plot(x, y, color=TEXT, linestyle=_BOUND, linewidth=1.6, zorder=1, label="_")
    _tag(drawn, text, _BOUND)
    _legends(ax.get_figure(root=True))


def bars(
    ax: Axes, labels: Sequence[str], values: Mapping[str, Sequence[float]], fmt: str = ",.3g"
) -> None:
    """Horizontal bars, one group a label and one colour a series, each with its number at its end."""
    height = 0.8 / len(values)
    for i, (name, series) in enumerate(values.items()):
        at = [row + (i - (len(values) - 1) / 2) * height for row in range(len(labels))]
        drawn = ax.barh(at, series, height * 0.88, color=COLOURS[i % len(COLOURS)], label=name)
        ax.bar_label(drawn, [format(value, fmt) for value in series], padding=4, fontsize=8.5)
    _rows(ax, labels)
    ax.margins(x=0.12)
    if len(values) > 1:
        _bar_legend(ax)


def stacked_bars(
    ax: Axes, labels: Sequence[str], shares: Mapping[str, Sequence[float]], least: float = 0.06
) -> None:
    """Horizontal bars of 100 %, split by series: fractions of 1. A part of at least `least` bears its percentage."""
    left = [0.0] * len(labels)
    for i, (name, series) in enumerate(shares.items()):
        colour = TEXT if i >= len(COLOURS) else COLOURS[i]
        drawn = ax.barh(range(len(labels)), series, 0.62, left=left, color=colour, label=name)
        ax.bar_label(drawn, [f"{value:.0%}" if value >= least else "" for value in series], label_type="center",
                     fontsize=8.5, color=ON_COLOUR)  # fmt: skip
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


def log2_axis(ax: Axes, which: str = "x") -> None:
    """A logarithmic axis with base 2 and plain numbers: 1, 2, 4, 8 … On x, the values that were measured.

    Call it after drawing.
    """
    axis = _log_axis(ax, which, 2)
    if which == "x":
        values = sorted(
            {float(value) for line in ax.lines for value in line.get_xdata() if value > 0}
        )
        narrow = ax.get_position().width * ax.get_figure(root=True).get_figwidth() < 4
        step = 2 if narrow and len(values) > 6 else 1
        if 0 < len(values) <= 14:
            axis.set_major_locator(FixedLocator(values[::-step][::-1]))


def log10_axis(ax: Axes, which: str = "y") -> None:
    """A logarithmic axis with base 10 and plain numbers: 1, 10, 100, 1,000; with 2 and 5 between where it is short.

    Call it after drawing.
    """
    axis = _log_axis(ax, which, 10)
    low, high = axis.get_view_interval()
    if high / low < 100:
        axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))


def _log_axis(ax: Axes, which: str, base: int) -> Axis:
    if which not in ("x", "y"):
        raise ValueError(f"which={which!r}: must be 'x' or 'y'")
    getattr(ax, f"set_{which}scale")("log", base=base)
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_locator(NullLocator())
    return axis


def percent_axis(ax: Axes, which: str = "y") -> None:
    """Fractions shown as percentages."""
    (ax.xaxis if which == "x" else ax.yaxis).set_major_formatter(PercentFormatter(1.0, decimals=0))
