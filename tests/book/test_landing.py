"""The first page: the figure of throughput by chapter, and whose records it shows."""

import json
import re

from book.tools.diagrams import check_colours
from book.tools.landing import GAIN, LOSS, caption, chosen_runs, sentences, waterfall
from lib.bench.findings.first_page.at_a_glance import Stage, stages


def record(folder, slug, kind, chapters):
    (folder / slug).mkdir(parents=True)
    for chapter in chapters:
        data = {"schema": 1, "scale": "cpu", "measurements": {}}
        data["fingerprint"] = {"hardware": {"slug": slug, "kind": kind, "label": slug}}
        (folder / slug / f"{chapter:02d}_x.json").write_text(json.dumps(data))


def test_the_machine_with_the_most_chapters_is_shown_and_of_two_the_gpu(tmp_path):
    assert chosen_runs(tmp_path) == {}
    record(tmp_path, "a-cpu", "cpu", [1, 2])
    record(tmp_path, "b-gpu", "cuda", [1])
    assert {run.slug for run in chosen_runs(tmp_path).values()} == {"a-cpu"}
    record(tmp_path, "c-gpu", "cuda", [1, 8])
    assert {run.slug for run in chosen_runs(tmp_path).values()} == {"c-gpu"}


def test_a_bar_ends_at_its_rate_and_its_colour_says_gain_or_loss():
    bars = [Stage(1, "a", "one sequence", 10.0), Stage(2, "b", "one sequence", 40.0), Stage(3, "c", "batch 8", 20.0)]  # fmt: skip
    svg = waterfall(bars)
    check_colours(svg)
    found = re.findall(
        r'<rect x="([\d.]+)" y="\d+" width="([\d.]+)" height="\d+" fill="(#\w+)"', svg
    )
    parts = [(float(x), float(width), fill) for x, width, fill in found]
    left, unit = parts[0][0], parts[1][1] / 10
    for bar, before, (x, width, fill) in zip(bars, [0, 10, 40], parts[1::2]):
        assert fill == (GAIN if bar.tok_s >= before else LOSS)
        assert abs(x - (left + unit * min(before, bar.tok_s))) < 0.2
        assert abs(width - unit * abs(bar.tok_s - before)) < 0.2
    assert "(4×)" in svg and "(0.5×)" in svg


def test_the_book_has_a_figure_and_a_sentence_for_each_recorded_chapter():
    runs = chosen_runs()
    assert [chapter for chapter, _ in sentences(runs)] == sorted(runs)
    text = caption(runs[8], stages(runs[8]))
    assert runs[8].label in text and runs[8].date in text and "batch 64" in text


def test_the_caption_names_the_colour_of_a_loss_only_where_a_bar_is_lower_than_the_one_before():
    run, bars = chosen_runs()[8], [Stage(1, "a", "one", 10.0), Stage(2, "b", "one", 40.0)]
    assert "orange" not in caption(run, bars) and "adds to the one before." in caption(run, bars)
    lower = [*bars, Stage(3, "c", "batch 8", 39.0)]
    assert "adds to the one before, and orange what it costs." in caption(run, lower)


def test_the_figure_has_the_font_of_its_page_and_fits_a_phone():
    svg = waterfall(
        [Stage(1, "a", "one", 10.0), Stage(7, "paged cache, fused attention", "one", 4e4)]
    )
    assert 'font-family="inherit"' in svg
    size, width = (
        float(re.search(p, svg)[1]) for p in (r'font-size="(\d+)"', r'viewBox="0 0 (\d+)')
    )
    assert size * 340 / width >= 12  # a phone's column has about 340 px
