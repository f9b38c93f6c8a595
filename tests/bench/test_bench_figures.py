"""Figures: contrast as computed, strokes and legends as promised, SVG that fits a page; notebook helpers in a script."""

import itertools
import re
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from lib.bench.notebook import glue as notebook
from lib.bench.notebook import style, tables
from lib.bench.notebook.figures import (
    bars,
    bound,
    figure,
    lines,
    log2_axis,
    log10_axis,
    recorded_lines,
    stacked_bars,
    table,
)
from lib.bench.notebook.style import COLOURS, MARKERS, ON_COLOUR, TEXT, contrast, save, show, to_svg
from lib.bench.records.files import Run

LIGHT, DARK = "#ffffff", "#121212"


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


def test_colour_is_the_series_and_stroke_is_the_run(drawn):
    fig, ax = drawn
    by_run = {(line.book_run, line.get_color()): line for line in ax.lines}
    assert set(by_run) == {("this run", COLOURS[0]), ("this run", COLOURS[1]), ("NVIDIA H200", COLOURS[0]),
                           ("A100, published", COLOURS[1])}  # fmt: skip
    assert (
        by_run["this run", COLOURS[0]].get_marker() == "o"
        and by_run["NVIDIA H200", COLOURS[0]].get_marker() == "None"
    )
    assert by_run["A100, published", COLOURS[1]].get_linestyle() == "--"
    series, runs = ([text.get_text() for text in legend.get_texts()] for legend in fig.legends)
    assert series == ["a", "b"] and runs == ["this run", "NVIDIA H200", "A100, published"]


def test_panels_share_one_legend():
    fig, axes = figure(2)
    for ax in axes:
        lines(ax, [1, 2], {"a": [1, 2], "b": [2, 1]})
    bound(axes[0], [1, 2], [1, 1], "limit")
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["a", "b"]
    assert [text.get_text() for text in fig.legends[1].get_texts()] == ["this run", "limit"]


def test_axes_have_plain_numbers(drawn):
    fig, ax = drawn
    log2_axis(ax, "x")
    log10_axis(ax, "y")
    fig.canvas.draw()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "4", "8"]
    assert {label.get_text() for label in ax.get_yticklabels()} >= {"1", "2", "5", "10"}
    with pytest.raises(ValueError, match="which='z'"):
        log2_axis(ax, "z")


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


def test_bars():
    fig, (a, b) = figure(1, 2, height=1.6)
    stacked_bars(a, ["x", "y"], {"gemm": [0.7, 0.1], "gemv": [0.3, 0.9]})
    bars(b, ["x", "y"], {"tok/s": [1234, 2]}, fmt=",.0f")
    assert [text.get_text() for text in b.texts] == ["1,234", "2"]
    assert "70%" in [text.get_text() for text in a.texts]
    to_svg(fig)


def test_recorded_lines_leave_out_what_a_run_lacks():
    def run(label, columns):
        entry = {"unit": "s", "params": {}, "seed": None, "samples": {}, "columns": columns}
        return Run(
            {
                "measurements": {"m": entry} if columns else {},
                "fingerprint": {"hardware": {"label": label}},
            }
        )

    runs = [
        run("full", {"n": [1], "ours": [2], "peer": [3]}),
        run("part", {"n": [1], "ours": [4]}),
        run("none", None),
    ]
    found = recorded_lines(runs, "m", x="n", y={"Ours": "ours", "Peer": "peer"})
    assert found == {"full": ([1], {"Ours": [2], "Peer": [3]}), "part": ([1], {"Ours": [4]})}


def test_table_as_text_and_as_html(capsys, monkeypatch):
    table([["gpt2", "124.4"], ["smollm2", "-"]], ["model", "M"])
    assert capsys.readouterr().out.splitlines() == [
        "model        M",
        "-------  -----",
        "gpt2     124.4",
        "smollm2      -",
    ]
    with pytest.raises(ValueError, match="row 0 has 1 cells"):
        table([["x"]], ["a", "b"])
    shown = []
    monkeypatch.setattr(tables, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", shown.append)
    table([["<b>", 1]], ["a", "b"])
    assert (
        "&lt;b&gt;" in shown[0].data and 'text-align:right;padding:.2em .8em">1<' in shown[0].data
    )


class _Toy:
    """A toy."""

    def one(self):
        return 1

    @property
    def two(self):
        return 2


def test_source_is_the_real_one():
    assert notebook.source(_Toy).startswith('class _Toy:\n    """A toy."""')
    assert notebook.source(_Toy, "two", "one") == (
        "class _Toy:\n\n    @property\n    def two(self):\n        return 2\n\n    def one(self):\n        return 1\n"
    )
    with pytest.raises(ValueError, match="_Toy defines no 'three'; it defines one, two"):
        notebook.source(_Toy, "three")


def test_helpers_are_silent_in_a_script(capfd):
    notebook.glue("x", 1.234, ".1f")
    notebook.show_source(_Toy)
    assert list(notebook.sweep(range(3), "n")) == [0, 1, 2] and capfd.readouterr() == ("", "")


def test_repository_url(tmp_path, monkeypatch):
    monkeypatch.setattr(notebook, "repository", lambda: tmp_path)
    assert notebook.repository_url() is None
    (tmp_path / "_config.yml").write_text(
        "title: x\nhtml:\n  url: no\nrepository:\n  # the one place\n  path_to_book: .\n  url: https://example.org/a/b/\n"
    )
    assert notebook.repository_url() == "https://example.org/a/b"
