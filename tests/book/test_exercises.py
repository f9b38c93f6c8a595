"""Exercises: numbered, each followed by its own folded solution, and of the kinds that every chapter has."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "chapters").glob("[0-9]*.py"))
EXERCISE = re.compile(r"^# :::\{exercise\} (.+)\n# :label: (\S+)\n", re.M)
SOLUTION = re.compile(r"^# `{3,}\{solution\} (\S+)\n# :class: dropdown\n", re.M)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_each_exercise_has_the_solution_that_follows_it(path):
    text = path.read_text()
    found = [("exercise", m.start(), m[2]) for m in EXERCISE.finditer(text)]
    found += [("solution", m.start(), m[1]) for m in SOLUTION.finditer(text)]
    order = [(kind, label) for kind, _, label in sorted(found, key=lambda item: item[1])]
    labels = [f"ex-{path.name[:2]}-{i + 1}" for i in range(len(order) // 2)]
    assert order == [(kind, label) for label in labels for kind in ("exercise", "solution")]
    assert len(labels) == text.count("{exercise}") == text.count("{solution}") >= 3


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_each_chapter_has_a_prediction_and_something_to_break(path):
    titles = [m[1] for m in EXERCISE.finditer(path.read_text())]
    assert {"Predict", "Break it and watch which test fails"} <= set(titles)
