"""One look for all figures, legible on a light page and on a dark one.

No grey reaches the usual contrast of 4.5 on white and on near-black at once (the best is 4.3), so text and axes are
drawn in a marker colour that becomes `currentColor` on a page: the page's own text colour, whichever theme it has.
Series are drawn in colours of middle luminance, at least 3:1 on both (WCAG 2 asks that of graphics); the first six
stay apart with every kind of colour blindness, and each has a marker of its own.

Introduced in chapter 1.
"""

import hashlib
import io
import math
import re
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import ScalarFormatter

from lib.bench.notebook.readable import with_least_width
from lib.bench.script_options import in_notebook, options

TEXT = "#797979"
COLOURS = ("#0f6fc0", "#e06a10", "#1a9a60", "#8a3ae8", "#bd7daa", "#bb2629", "#7d8894", "#8a6a20")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
ON_COLOUR = "#ffffff"  # text on an area filled with one of COLOURS
WIDTH = 7.2  # inches; 72 to the inch is CSS's 691 px: one column of the book

STYLE: dict[str, Any] = {
    "font.size": 10, "axes.titlesize": 10.5, "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "legend.fontsize": 9, "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlepad": 8,
    "text.color": TEXT, "axes.labelcolor": TEXT, "axes.edgecolor": TEXT, "axes.titlecolor": TEXT, "xtick.color": TEXT,
    "ytick.color": TEXT, "grid.color": TEXT, "grid.alpha": 0.22, "grid.linewidth": 0.7, "axes.grid": True,
    "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
    "xtick.major.size": 3, "ytick.major.size": 3, "xtick.minor.size": 0, "ytick.minor.size": 0,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "lines.linewidth": 2.0, "lines.markersize": 5.5, "lines.solid_capstyle": "round",
    "legend.frameon": False, "legend.handlelength": 2.2, "legend.columnspacing": 1.6, "legend.borderaxespad": 0.2,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS), "svg.hashsalt": "token-by-token",
}  # fmt: skip

# The book's theme puts output into a light box when the page is dark; a figure of ours needs none.
_NO_BOX = (
    "<style>html[data-theme=dark] .bd-content div.cell_output .text_html:has(svg.book-figure)"
    "{background:none;color:inherit;padding:0}svg.book-figure{max-width:100%;height:auto}</style>"
)


class _Thousands(ScalarFormatter):
    """Matplotlib's numbers on a linear axis, from a thousand on with commas, as in the text."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        text = super().__call__(x, pos)
        try:
            shown = float(text.replace("\u2212", "-"))
        except ValueError:
            return text
        if abs(x) < 1000 or not math.isclose(shown, x, rel_tol=1e-3):  # a part of a power of ten
            return text
        return f"{x:,.10g}".replace("-", "\u2212")


def figure(
    ncols: int = 1, nrows: int = 1, height: float = 3.2, width: float = WIDTH, **subplots: Any
) -> tuple[Figure, Any]:
    """`fig, ax = figure()`, or `fig, axes = figure(2)` for panels side by side; `height` in inches for each row."""
    matplotlib.rcParams.update(STYLE)
    fig = Figure(figsize=(width, height * nrows), layout="constrained")
    panels = fig.subplots(nrows, ncols, **subplots)
    for axis in (axis for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)):
        axis.set_major_formatter(_Thousands())
        axis.isDefault_majfmt = True  # names on an axis replace its numbers, as they would without
    return fig, panels


def caution(ax: Axes, text: str) -> None:
    """Writes what a gate says about this figure above its panel, wrapped to the drawn panel; nothing for no text."""
    if text:
        title = ax.set_title("", fontsize=9, fontweight="normal", style="italic")
        _note(ax.get_figure(root=True), title, text, ax)


def caution_below(fig: Figure, text: str) -> None:
    """The same below a figure whose panels have titles of their own."""
    if text:
        _note(fig, fig.supxlabel("", fontsize=9, style="italic"), text, None)


def _note(fig: Figure, label: Text, text: str, ax: Axes | None) -> None:
    """Writes a note on a figure and keeps it, because the panel's width is known only when all is drawn."""
    notes = [note for note in getattr(fig, "book_notes", []) if note[0] is not label]
    fig.book_notes = [*notes, (label, text[:1].upper() + text[1:] + ".", ax)]
    _wrap_notes(fig)


def _wrap_notes(fig: Figure) -> None:
    """Wraps every note to the width of its panel, or of the figure, after a layout of all that is in it now."""
    notes = getattr(fig, "book_notes", [])
    if notes:
        fig.draw_without_rendering()
    for label, text, ax in notes:
        room = fig.bbox.width * 0.98 if ax is None else ax.get_window_extent().width
        label.set_text(text)
        columns = max(1, int(len(text) * room / label.get_window_extent().width))
        label.set_text(textwrap.fill(text, columns))
        while label.get_window_extent().width > room and columns > 8:
            columns -= 1
            label.set_text(textwrap.fill(text, columns))
        if ax is None:
            label.set_text(label.get_text() + "\n " * _lines_below(fig, label))


def _lines_below(fig: Figure, label: Text) -> int:
    """Lines of a label's size that legends at the lower edge need: the layout does not keep the label away from them."""
    lower = [legend for legend in fig.legends if getattr(legend, "_outside_loc", "") == "lower"]
    height = sum(legend.get_window_extent().height for legend in lower)
    line = label.get_fontsize() * 1.2 * fig.dpi / 72
    return math.ceil(height / line)


def to_svg(fig: Figure, inline: bool = False) -> str:
    """The figure as SVG text. `inline`: to be part of a page, whose text colour and font it takes."""
    _wrap_notes(fig)
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.fonttype": "none" if inline else "path"}):
        fig.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    if not inline:
        return svg
    svg = svg[svg.index("<svg") :].replace("<svg ", '<svg class="book-figure" role="img" ', 1)
    svg = svg.replace(TEXT, "currentColor")
    svg = re.sub(
        r"font: ((?:\w+ )*?)([\d.]+px) [^;\"]*", _page_font, svg
    )  # how matplotlib before 3.11 says it
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    # Several figures share one page: their ids must differ.
    prefix = "f" + hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    return with_least_width(re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg))


def _page_font(match: re.Match[str]) -> str:
    weight = "font-weight: bold; " if "bold" in match[1] or "700" in match[1] else ""
    return f"{weight}font-size: {match[2]}; font-family: inherit"


def show(fig: Figure, name: str) -> None:
    """Shows the figure in a notebook; a script saves it as `NAME.svg` where it was started with `--figures DIR`."""
    if in_notebook():
        from IPython.display import display

        bundle = {"text/html": _NO_BOX + to_svg(fig, inline=True), "text/plain": f"<figure {name}>"}
        display(bundle, raw=True)
        return
    folder = options().figures
    if folder is not None:
        save(fig, Path(folder) / f"{name}.svg")


def save(fig: Figure, path: Path | str) -> None:
    """Writes the figure by its ending (.svg, .png, .pdf), transparent, in colours that read on light and dark."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".svg":
        path.write_text(to_svg(fig))
        return
    _wrap_notes(fig)
    with matplotlib.rc_context(STYLE):
        fig.savefig(path, dpi=200, transparent=True)
