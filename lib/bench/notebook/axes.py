"""Axes with plain numbers: logarithmic ones and percentages. Introduced in chapter 1."""

import math

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator, PercentFormatter

from lib.bench.powers import power_of_ten


def log2_axis(ax: Axes, which: str = "x") -> None:
    """A logarithmic axis with base 2 and plain numbers: 1, 2, 4, 8 … On x, the values that were measured.

    A narrow panel has every second of many values, from the least on. Call it after drawing.
    """
    axis = _log_axis(ax, which, 2)
    if which == "x":
        values = sorted(
            {float(value) for line in ax.lines for value in line.get_xdata() if value > 0}
        )
        narrow = ax.get_position().width * ax.get_figure(root=True).get_figwidth() < 4
        step = 2 if narrow and len(values) > 6 else 1
        if 0 < len(values) <= 14:
            axis.set_major_locator(FixedLocator(values[::step]))


def log10_axis(ax: Axes, which: str = "y") -> None:
    """A logarithmic axis with base 10 and plain numbers: 1, 10, 100, 1,000; with 2 and 5 between where it is short.

    A long axis that goes below 0.001 has powers of ten: 10⁻⁶, 10⁻⁵, 10⁻⁴. Call it after drawing.
    """
    axis = _log_axis(ax, which, 10)
    low, high = axis.get_view_interval()
    if high / low < 100:
        axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    elif low < 1e-3:
        axis.set_major_formatter(FuncFormatter(lambda x, _: power_of_ten(round(math.log10(x)))))


def _log_axis(ax: Axes, which: str, base: int) -> Axis:
    if which not in ("x", "y"):
        raise ValueError(f"which={which!r}: must be 'x' or 'y'")
    getattr(ax, f"set_{which}scale")("log", base=base)
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_locator(NullLocator())
    return axis


def percent_axis(ax: Axes, which: str = "y") -> None:
    """Fractions shown as percentages, with a space before the sign, as in the text."""
    formatter = PercentFormatter(1.0, decimals=0, symbol="\u00a0%")
    (ax.xaxis if which == "x" else ax.yaxis).set_major_formatter(formatter)
