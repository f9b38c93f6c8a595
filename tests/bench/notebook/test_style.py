"""The look of figures: contrast and colours as computed, SVG that fits a page."""

import itertools
import re
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from lib.bench.notebook import style
from lib.bench.notebook.figures import (
    figure,
    lines,
)
from lib.bench.notebook.style import COLOURS, MARKERS, ON_COLOUR, TEXT, save, show, to_svg

LIGHT, DARK = "#ffffff", "#121212"


def contrast(colour, background):
    """Contrast ratio of two colours by WCAG 2, from 1 (the same) to 21 (black on white)."""
    light, dark = sorted((luminance(colour), luminance(background)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_of_known_pairs():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)
    assert contrast("#ffffff", "#ffffff") == 1


@pytest.mark.parametrize("colour", COLOURS)
def test_series_read_on_light_and_dark(colour):
    assert (
        contrast(colour, LIGHT) >= 3
        and contrast(colour, DARK) >= 3
        and contrast(ON_COLOUR, colour) >= 3
    )


def test_text_in_saved_files_is_as_good_as_one_grey_can_be():
    best = max(
        min(contrast(f"#{v:02x}{v:02x}{v:02x}", b) for b in (LIGHT, DARK)) for v in range(256)
    )
    assert best < 4.5  # why a page gets currentColor instead
    assert min(contrast(TEXT, LIGHT), contrast(TEXT, DARK)) >= best - 0.05


# What a reader without one kind of cone sees, on linear RGB (Machado, Oliveira & Fernandes, 2009, severity 1).
VISION = {
    "all cones": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
}


XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour, vision):
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(np.array(vision) @ linear, 0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
def test_six_series_stay_apart_for_every_eye(vision):
    for a, b in itertools.combinations(COLOURS[:6], 2):
        assert np.linalg.norm(lab(a, VISION[vision]) - lab(b, VISION[vision])) > 15, (a, b)
    assert len(set(COLOURS)) == len(COLOURS) == len(set(MARKERS))


@pytest.fixture
def drawn():
    fig, ax = figure()
    lines(ax, [1, 2, 4], {"a": [1, 2, 3], "b": [2, None, 4]},
          recorded={"NVIDIA H200": ([1, 2, 8], {"a": [9, 9, 9]})},
          reference={"A100, published": ([1, 8], {"b": [5, 6]})})  # fmt: skip
    return fig, ax


def test_inline_svg_takes_the_page_s_colour_and_font(drawn):
    svg = to_svg(drawn[0], inline=True)
    ElementTree.fromstring(svg)
    assert TEXT not in svg and "currentColor" in svg and "DejaVu" not in svg
    ids, used = (
        set(re.findall(r'\bid="([^"]+)"', svg)),
        set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)),
    )
    assert {a or b for a, b in used} <= ids
    assert (
        to_svg(drawn[0], inline=True) == svg
    )  # the same figure, the same bytes: a rebuild changes nothing


def test_two_inline_figures_share_no_id(drawn):
    fig, ax = figure()
    lines(ax, [1, 2], {"a": [1, 2]})
    ids = [set(re.findall(r'\bid="([^"]+)"', to_svg(f, inline=True))) for f in (fig, drawn[0])]
    assert not ids[0] & ids[1]


def test_a_script_saves_a_figure_only_when_asked(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["02_toy.py"])
    show(drawn[0], "toy")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", ["02_toy.py", "--figures", str(tmp_path / "f")])
    show(drawn[0], "toy")
    assert ElementTree.parse(tmp_path / "f" / "toy.svg")
    save(drawn[0], tmp_path / "toy.png")
    assert (tmp_path / "toy.png").read_bytes()[:4] == b"\x89PNG"


def test_a_notebook_gets_html(drawn, monkeypatch):
    shown = []
    monkeypatch.setattr(style, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    show(drawn[0], "toy")
    assert shown[0]["text/html"].count("<svg") == 1 and shown[0]["text/plain"] == "<figure toy>"
