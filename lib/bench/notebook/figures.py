"""The book's figures: this run beside recorded runs and the published reference, always drawn the same way.

Colour and marker show the series of a line; the stroke shows the run: solid with markers for this run, thin for a
recorded run, dashed for published figures, short for the first source and long for the second. A chapter imports all it draws with from here.

Introduced in chapter 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lib.bench.notebook.axes import log2_axis, log10_axis, percent_axis
from lib.bench.notebook.bars import bars, stacked_bars
from lib.bench.notebook.style import COLOURS, MARKERS, ON_COLOUR, TEXT, figure, save, show
from lib.bench.notebook.tables import table
from lib.bench.records.files import Run

__all__ = ["COLOURS", "ON_COLOUR", "TEXT", "bars", "bound", "figure", "lines", "log2_axis", "log10_axis",
           "percent_axis", "recorded_lines", "save", "show", "stacked_bars", "table"]  # fmt: skip

Line = tuple[Sequence[float], Mapping[str, Sequence[float | None]]]  # x and, by series, y
_RECORDED = ((0, ()), (0, (5, 1.2, 1, 1.2)), (0, (1, 1.2)), (0, (7, 1.2, 1, 1.2, 1, 1.2)))
_PUBLISHED = ((0, (4, 2.4)), (0, (9, 3)))
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
    """Draws this run's series over `x`, and the same series of others. None is a gap: no such measurement. A series that
    others have alone gets its place in the legend by a column of None in `y`.

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
    for i, (run, (xs, series)) in enumerate((reference or {}).items()):
        stroke = _PUBLISHED[i % len(_PUBLISHED)]
        for name, ys in series.items():
            _line(ax, xs, ys, names.index(name), run, linestyle=stroke, linewidth=1.4, zorder=2)
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
    """Notes on the line its run and its stroke, for the legend of runs."""
    line.book_run, line.book_stroke = run, stroke
    return line


def _legends(fig: Figure) -> None:
    """Rebuilds the figure's two legends from all that is drawn in it."""
    for legend in list(fig.legends):
        legend.remove()
    drawn = [line for ax in fig.axes for line in ax.lines if hasattr(line, "book_run")]
    series = {line.get_label(): line for line in drawn if not line.get_label().startswith("_")}
    runs: dict[str, Line2D] = {}
    colours: dict[str, set[str]] = {}
    for line in sorted(drawn, key=lambda line: line.get_label().startswith("_")):  # this run first
        runs.setdefault(line.book_run, line)
        colours.setdefault(line.book_run, set()).add(line.get_color())
    keyed = {  # a bound of one series has its colour, which tells two dotted lines apart
        run: found.pop() if len(found) == 1 and runs[run].book_stroke == _BOUND else TEXT
        for run, found in colours.items()
    }
    if len(series) > 1 or (len(runs) > 1 and series):
        columns = 3 if len(series) in (5, 6) else min(len(series), 4)  # rows of about one length
        fig.legend(series.values(), series.keys(), loc="outside upper left", ncols=columns)
    beside = len(runs) > 1
    curves = [name for name, line in runs.items() if line.book_stroke != _BOUND]
    if len(curves) == 1 and curves[0].startswith("recorded run of"):
        del runs[curves[0]]  # every curve is of that run, as the figure's note says
    if beside:
        keys = [
            Line2D([], [], color=keyed[run], linestyle=line.book_stroke, linewidth=line.get_linewidth(),
                   marker="" if line.get_label().startswith("_") else "o")
            for run, line in runs.items()
        ]  # fmt: skip
        fig.legend(
            keys, runs.keys(), loc="outside lower left", ncols=len(runs) if len(runs) <= 3 else 2
        )


def bound(
    ax: Axes,
    x: Sequence[float] | None,
    y: Sequence[float] | float,
    text: str,
    colour: str = TEXT,
) -> None:
    """A predicted limit, dotted: a number (`x` None), named right of the panel, or a curve over `x`, in the legend.

    colour: of the series that it belongs to, where each series has a curve of its own.
    """
    if x is None:
        ax.axhline(y, color=colour, linestyle=_BOUND, linewidth=1.6, zorder=1)
        ax.annotate(text, (1, y), xycoords=ax.get_yaxis_transform(), xytext=(4, 0), textcoords="offset points",
                    fontsize=8.5, va="center", annotation_clip=False)  # fmt: skip
        return
    (drawn,) = ax.plot(x, y, color=colour, linestyle=_BOUND, linewidth=1.6, zorder=1, label="_")
    _tag(drawn, text, _BOUND)
    _legends(ax.get_figure(root=True))
