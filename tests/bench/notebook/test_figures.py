"""Figures: strokes, legends, axes and bars as promised."""

import pytest

from lib.bench.notebook.figures import (
    bars,
    bound,
    figure,
    lines,
    log2_axis,
    log10_axis,
    recorded_lines,
    stacked_bars,
)
from lib.bench.notebook.style import COLOURS, TEXT, caution_below, to_svg
from lib.bench.records.files import Run


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


def test_a_bound_of_one_series_has_its_colour_in_the_legend():
    fig, ax = figure()
    lines(ax, [1, 2], {"a": [1, 2], "b": [2, 1]})
    for i in range(2):
        bound(ax, [1, 2], [1, 1], "bounds", COLOURS[i])
    bound(ax, [1, 2], [1, 1], "predicted", COLOURS[1])
    keys = {
        text.get_text(): line.get_color()
        for text, line in zip(fig.legends[1].get_texts(), fig.legends[1].get_lines())
    }
    assert keys == {"this run": TEXT, "bounds": TEXT, "predicted": COLOURS[1]}


def test_axes_have_plain_numbers(drawn):
    fig, ax = drawn
    log2_axis(ax, "x")
    log10_axis(ax, "y")
    fig.canvas.draw()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "4", "8"]
    assert {label.get_text() for label in ax.get_yticklabels()} >= {"1", "2", "5", "10"}
    with pytest.raises(ValueError, match="which='z'"):
        log2_axis(ax, "z")


def test_an_axis_of_tiny_numbers_has_powers_of_ten(drawn):
    fig, ax = drawn
    ax.plot([1, 8], [3e-7, 2e-3])
    log10_axis(ax, "y")
    fig.canvas.draw()
    said = [label.get_text() for label in ax.get_yticklabels()]
    assert {"10⁻⁶", "10⁻⁴"} <= set(said) and not any("e" in text for text in said)


def test_a_narrow_panel_marks_every_second_size_from_the_least_on():
    fig, (ax, _) = figure(2)
    sizes = [2**n for n in range(10)]
    lines(ax, sizes, {"a": sizes})
    log2_axis(ax, "x")
    assert list(ax.get_xticks()) == [1, 4, 16, 64, 256]


def test_bars():
    fig, (a, b) = figure(1, 2, height=1.6)
    stacked_bars(a, ["x", "y"], {"gemm": [0.7, 0.1], "gemv": [0.3, 0.9]})
    bars(b, ["x", "y"], {"tok/s": [1234, 2]}, fmt=",.0f")
    assert [text.get_text() for text in b.texts] == ["1,234", "2"]
    assert "70\u00a0%" in [text.get_text() for text in a.texts]
    fig.canvas.draw()
    assert a.get_xticklabels()[-1].get_text() == "100\u00a0%"
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


def test_a_figure_of_one_recorded_run_alone_has_no_entry_for_it():
    fig, ax = figure()
    lines(ax, [1, 2], {"a": [1, 2], "b": [2, 1]}, label="recorded run of 2026-05-01")
    bound(ax, [1, 2], [1, 1], "limit")
    assert [text.get_text() for text in fig.legends[1].get_texts()] == ["limit"]
    lines(ax, [1], {}, recorded={"NVIDIA H200": ([1, 2], {"a": [3, 4]})})
    assert "recorded run of 2026-05-01" in [text.get_text() for text in fig.legends[1].get_texts()]


def test_a_note_below_a_figure_stays_clear_of_a_legend_there():
    fig, axes = figure(2)
    for ax in axes:
        lines(ax, [1, 2], {"a": [1, 2], "b": [2, 1]})
    bound(axes[0], [1, 2], [1, 1], "limit")
    caution_below(fig, "this run cannot show it: " + "it is a test of a long note; " * 8)
    to_svg(fig)
    fig.draw_without_rendering()
    lower = fig.legends[1].get_window_extent()
    drawn = fig._supxlabel
    rows = drawn.get_text().split("\n")
    blank = sum(not row.strip() for row in rows)
    box = drawn.get_window_extent()
    assert blank and box.y0 + box.height * blank / len(rows) >= lower.y1 - 1


def test_a_computed_row_is_outlined_only():
    _, ax = figure()
    bars(ax, ["measured", "bound"], {"this run": [90.0, 80.0], "another": [95.0, 85.0]}, outlined=1)
    filled = [[bar.get_fill() for bar in group] for group in ax.containers]
    assert filled == [[True, False]] * 2


def test_thousands_have_commas_on_a_linear_axis():
    fig, (number, name) = figure(2)
    number.plot([0, 4000], [0.0, 1.0])
    name.plot(["a", "b"], [-2000, 2000])
    fig.draw_without_rendering()
    texts = [[t.get_text() for t in axis.get_ticklabels()] for axis in (number.xaxis, number.yaxis)]
    assert {"0", "1,000", "4,000"} <= set(texts[0]) and {"0.0", "1.0"} <= set(texts[1])
    assert [t.get_text() for t in name.get_xticklabels()] == ["a", "b"]
    assert "\u22122,000" in [t.get_text() for t in name.get_yticklabels()]
