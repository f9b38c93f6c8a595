"""The width at which a drawing's text can be read."""

import pytest

from lib.bench.notebook.figures import bars, figure
from lib.bench.notebook.readable import least_width, with_least_width
from lib.bench.notebook.style import to_svg


def test_the_smallest_text_sets_the_width():
    svg = '<svg viewBox="0 0 960 300"><text font-size="16">a</text><text font-size="12">b</text></svg>'
    assert least_width(svg) == 720  # 12 units of 960 are 9 px of 720
    assert with_least_width(svg).startswith('<svg style="--least: 720px" viewBox')
    styled = svg.replace("<svg", '<svg style="width: 90%"', 1)
    assert with_least_width(styled).startswith('<svg style="--least: 720px; width: 90%"')


def test_a_drawing_without_text_needs_no_width():
    assert with_least_width('<svg viewBox="0 0 9 9"/>') == '<svg viewBox="0 0 9 9"/>'
    with pytest.raises(ValueError, match="begin with its <svg>"):
        with_least_width('<?xml?><svg viewBox="0 0 9 9"><text font-size="3">x</text></svg>')


def test_a_figure_in_a_page_carries_it():
    fig, ax = figure()
    bars(ax, ["x"], {"tok/s": [2]})
    # 8.5 pt is the smallest text of these bars, and a figure is 518.4 pt wide.
    assert 'style="--least: 549px"' in to_svg(fig, inline=True)
    assert "--least" not in to_svg(fig)
