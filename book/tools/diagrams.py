"""Diagrams: one SVG each, drawn in the palette's light colours, put into the page as it is.

A picture in an <img> cannot follow the page's theme, inline SVG can: `book/_static/diagrams.css` gives each of the
palette's colours its dark value. `make notebooks` writes that file; another colour in a diagram is an error.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

from lib.bench.notebook.readable import with_least_width

IMAGES = Path(__file__).resolve().parents[1] / "images"
CSS = Path(__file__).resolve().parents[1] / "_static" / "diagrams.css"
NOT_DIAGRAMS = {"logo.svg"}

PALETTE = {
    "#1f2430": "#e6e8ee",  # text, strong lines
    "#5b6472": "#a6adbb",  # secondary text, arrows
    "#ffffff": "#1b1e26",  # box
    "#f4f6f9": "#242833",  # group behind boxes
    "#c9d0da": "#434a59",  # hairlines
    "#e3edfb": "#1d3557",  # blue fill
    "#2f6fb5": "#7fb2ec",  # blue line
    "#fdeedd": "#4a3218",  # orange fill
    "#b8641b": "#f0ab62",  # orange line
    "#e2f3ea": "#17402f",  # green fill
    "#2c7d57": "#72cfa2",  # green line
    "#f6e6f0": "#462439",  # pink fill
    "#a1437f": "#e694c6",  # pink line
}


def dark_rules(before: str = "") -> str:
    """CSS that turns the palette dark, for elements that the selector `before` holds. A rule beats an attribute."""
    return "".join(
        f'{before}[{name}="{light}"] {{ {name}: {dark}; }}\n'
        for light, dark in PALETTE.items()
        for name in ("fill", "stroke")
    )


def css() -> str:
    """The text of diagrams.css."""
    note = "/* Written by `make notebooks` from book/tools/diagrams.py. */\n"
    return note + dark_rules('html[data-theme="dark"] .diagram ')


def check_colours(svg: str) -> None:
    """Raises ValueError for a colour outside the palette: it would not turn dark."""
    unknown = sorted({c for c in re.findall(r"#[0-9a-fA-F]{6}\b", svg) if c.lower() not in PALETTE})
    if unknown:
        raise ValueError(
            f"colours outside the palette: {', '.join(unknown)}; use one of {', '.join(PALETTE)}"
        )


def inline(svg: str, name: str, alt: str = "", width: str = "") -> str:
    """An SVG file as a part of a page: its ids are made unique by `name`, its own style sheet is left out.

    alt: text for a screen reader in place of the drawing. width: as in CSS; default: all of the column.
    """
    svg = re.sub(
        r"<\?xml.*?\?>|<!--.*?-->|<style>.*?</style>|<title>.*?</title>", "", svg, flags=re.S
    )
    check_colours(svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    label = f' aria-label="{html.escape(alt)}"' if alt else ""
    drawn = svg.strip().replace("<svg ", f'<svg style="width: {width or "100%"}"{label} ', 1)
    return with_least_width(drawn)


def diagram_files() -> list[Path]:
    return [path for path in sorted(IMAGES.glob("*.svg")) if path.name not in NOT_DIAGRAMS]
