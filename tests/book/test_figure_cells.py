"""A cell whose output is a named figure shows nothing else: MyST-NB makes each of its outputs a figure of that name."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "chapters").glob("*.ipynb"))
# What shows something of its own: a bar of progress, a table, text, a listing.
SHOWS = re.compile(r"(?<![\w.])(?:sweep|table|print|say|show_source|show_excerpt)\(")


def others(notebook: dict) -> list[str]:
    """The figures whose cells show something beside them."""
    return [
        cell["metadata"]["mystnb"]["figure"]["name"]
        for cell in notebook["cells"]
        if "figure" in cell["metadata"].get("mystnb", {}) and SHOWS.search("".join(cell["source"]))
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_figures_cell_shows_nothing_else(path):
    assert others(json.loads(path.read_text())) == []


def test_a_bar_of_progress_beside_a_figure_is_found():
    figure = {"mystnb": {"figure": {"name": "fig-01-time"}}}
    cells = [
        {"metadata": figure, "source": ["found = [time(n) for n in sweep(SIZES)]\n", "show(fig)"]},
        {"metadata": figure, "source": ["ax.print(drawn)\n", "show(fig)"]},
        {"metadata": {}, "source": ["table(rows)"]},
    ]
    assert others({"cells": cells}) == ["fig-01-time"]
