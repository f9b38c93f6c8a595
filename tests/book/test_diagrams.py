"""Diagrams: one SVG each, inline in the page, in colours that all have a dark value."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from book.tools import diagrams
from lib.bench.notebook.readable import least_width

FILES = diagrams.diagram_files()


def test_there_are_diagrams_and_no_dark_copies():
    assert len(FILES) > 5
    assert not [path.name for path in FILES if ".dark." in path.name]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_a_diagram_is_well_formed_inline_and_has_only_colours_of_the_palette(path):
    text = diagrams.inline(path.read_text(), path.stem, alt="a & b", width="90%")
    root = ElementTree.fromstring(text)
    assert root.get("aria-label") == "a & b"
    assert re.fullmatch(r"--least: \d+px; width: 90%", root.get("style"))
    ids = set(re.findall(r'\bid="([^"]+)"', text))
    assert all(name.startswith(f"{path.stem}-") for name in ids), "unique on a page of several"
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= ids
    assert "<style" not in text, "a style sheet inside would hold for the whole page"


def test_a_colour_outside_the_palette_is_refused():
    with pytest.raises(ValueError, match="#123456"):
        diagrams.inline('<svg xmlns="http://www.w3.org/2000/svg"><rect fill="#123456"/></svg>', "x")


def test_every_colour_has_a_dark_rule_for_lines_and_for_areas():
    css = diagrams.css()
    for light, dark in diagrams.PALETTE.items():
        for name in ("fill", "stroke"):
            assert f'.diagram [{name}="{light}"] {{ {name}: {dark}; }}' in css


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_text_is_readable_where_the_diagram_is_as_wide_as_the_column(path):
    assert least_width(path.read_text()) <= 700, "the book's column at 1300 px has 704"
