"""Animated diagrams: made from real runs, still where a reader wants no motion, and one step at a time in a browser."""

import re

import pytest

from book.animations import batching, graph_replay, paged_blocks
from book.animations.__main__ import files
from book.animations.film import Film, style_sheet
from book.tools.check_pages import browser, chromium
from book.tools.diagrams import inline
from lib.bench.notebook.readable import least_width
from lib.engine.scheduler import Scheduler
from lib.engine.static_scheduler import StaticScheduler

SOURCES = {"batching": batching, "paged": paged_blocks, "replay": graph_replay}


@pytest.fixture(scope="module")
def films():
    return {name: source.film() for name, source in SOURCES.items()}


def shown(film: Film) -> list[str]:
    """The texts of the picture without motion."""
    found = re.findall(r"<text ([^>]*)>([^<]*)</text>", film.svg("x"))
    return [words for attributes, words in found if "hidden" not in attributes]


def test_the_files_are_those_that_the_runs_give():
    for path, text in files().items():
        assert path.read_text() == text, f"{path.name} is out of date: python -m book.animations"


def test_both_schedulers_give_every_request_its_tokens_and_take_the_counted_steps():
    answers = {a.name: a.answer for a in batching.REQUESTS}
    for kind in (StaticScheduler, Scheduler):
        steps = batching.steps_of(kind)
        assert {n: sum(n in step.held for step in steps) for n in answers} == answers
    static, continuous = (len(batching.steps_of(k)) for k in (StaticScheduler, Scheduler))
    longest = [max(list(answers.values())[i : i + 3]) for i in (0, 3, 6)]
    assert static == sum(longest) > continuous


def test_in_the_pool_no_block_has_two_owners_and_a_request_gives_way_and_comes_back():
    steps = paged_blocks.steps()
    for step in steps:
        blocks = [block for table in step.held.values() for block in table]
        assert len(set(blocks)) == len(blocks) and 0 not in blocks
    (given_way,) = (i for i, step in enumerate(steps) if step.preempted)
    assert steps[given_way].preempted == ["C"] and "C" in steps[given_way + 1].held
    assert given_way + 1 == 4, "the caption names the step"
    assert any("D" in step.waiting for step in steps)


def test_the_captions_say_what_the_runs_are():
    answers = [a.answer for a in batching.REQUESTS]
    assert (len(answers), batching.SLOTS, min(answers), max(answers)) == (8, 3, 2, 8)
    assert {a.prompt for a in batching.REQUESTS} == {1}
    assert (len(paged_blocks.REQUESTS), paged_blocks.BLOCKS, paged_blocks.BLOCK) == (4, 7, 4)


def test_a_replayed_step_has_the_smallest_recorded_graph_that_fits():
    steps = graph_replay.steps()
    assert [(len(s.names), s.size) for s in steps] == [(3, None), (3, 4), (3, 4), (2, 2), (1, 1)]
    padding = [row for step in steps for row in step.rows if row.name is None]
    assert padding and all(not any([r.position, r.slot, *r.table]) for r in padding)


@pytest.mark.parametrize("name", SOURCES)
def test_without_motion_it_is_one_picture_of_one_step(films, name):
    steps = [words for words in shown(films[name]) if re.fullmatch(r"Step \d+", words)]
    assert len(steps) == (0 if name == "batching" else 1)
    assert not [words for words in shown(films[name]) if "waiting:" in words]


@pytest.mark.parametrize("name", SOURCES)
def test_it_can_be_read_on_a_phone_without_scrolling(films, name):
    svg = inline(films[name].svg("x"), name)  # refuses a colour outside the palette
    assert least_width(svg) <= 350


def test_nothing_moves_on_paper_or_where_less_motion_is_asked_for(films):
    css = style_sheet(films.values())
    rules = [line for line in css.splitlines() if not line.startswith("/*")]
    assert rules[0] == "@media screen and (prefers-reduced-motion: no-preference) {"
    assert rules[-1] == "}" and css.count("@media") == 1


def test_frames_outside_the_film_are_refused(films):
    for frames in ((2, 2), (-1, 1), (0, films["paged"].num_frames + 1)):
        with pytest.raises(ValueError, match="frames must lie in"):
            films["paged"].text(0, 0, "x", frames=frames)


@pytest.mark.browser
@pytest.mark.skipif(chromium() is None, reason="no chromium here")
@pytest.mark.parametrize("name", ("paged", "replay"))
def test_in_a_browser_one_step_is_visible_at_a_time(films, name):
    film = films[name]
    drawing = inline(film.svg("x"), name)
    html = f"<style>{style_sheet([film])}</style><div class='diagram'>{drawing}</div>"
    look = """() => [...document.querySelectorAll("text")].filter((t) => /^Step \\d+$/.test(t.textContent)
      && getComputedStyle(t).visibility === "visible").map((t) => t.textContent)"""
    jump = "t => document.getAnimations().forEach((a) => { a.pause(); a.currentTime = t; })"
    with browser() as started:
        page = started.new_page()
        page.set_content(html)
        seen = []
        for frame in range(film.num_frames):
            page.evaluate(jump, 1000 * film.seconds * (frame + 0.5))
            (step,) = page.evaluate(look)
            seen.append(int(step.split()[1]))
        assert seen == sorted(seen) and seen[0] == 1
        page.emulate_media(reduced_motion="reduce")
        assert len(page.evaluate(look)) == 1
        assert page.evaluate("document.getAnimations().length") == 0
