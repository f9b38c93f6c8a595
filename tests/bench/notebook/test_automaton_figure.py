"""The drawing of an automaton says what its table says."""

import pytest

from lib.bench.notebook.automaton_figure import draw_automaton, edges, label, places
from lib.bench.notebook.figures import figure
from lib.engine.structured.automaton import from_choice, from_regex


def test_edges_are_the_table_without_the_dead_state():
    automaton = from_regex(r"-?[0-9]+")
    found = edges(automaton)
    assert set(found.values()) == {"“-”", "0–9"}
    for state, after in found:
        assert (automaton.table[state] == after).any()
    assert sum(state == after for state, after in found) == 1


def test_labels_join_neighbours():
    assert label([48, 49, 50, 97, 99, 100]) == "0–2 a c d"
    assert label([10, 0xC3]) == "0a c3"


def test_every_state_has_a_place_of_its_own():
    automaton = from_regex(r"-?(0|[1-9]\d*)(\.\d+)?")
    at = places(automaton)
    assert len(set(at.values())) == len(at) == len(automaton.table) - 1
    for state, after in edges(automaton):
        assert at[state][0] < at[after][0] or state >= after


def test_it_draws_a_circle_per_state_and_a_second_one_per_end():
    automaton = from_choice(["yes", "no"])
    _, ax = figure()
    draw_automaton(ax, automaton)
    drawn = [patch for patch in ax.patches if type(patch).__name__ == "Circle"]
    assert len(drawn) == len(automaton.table) - 1 + int(automaton.accepting.sum())
    texts = {text.get_text() for text in ax.texts}
    assert {"y", "e", "s", "n", "o"} <= texts


def test_an_automaton_with_too_many_states_is_refused():
    _, ax = figure()
    with pytest.raises(ValueError, match="at most 24 states, got 41"):
        draw_automaton(ax, from_regex("a{40}"))
