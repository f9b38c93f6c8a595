"""The exercises' checker: it refuses each stub and each named wrong answer, and accepts each solution."""

import inspect
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from book.check import CHAPTERS, exercise, verdict
from book.check.__main__ import main
from lib.bench.notebook.exercise import check

ROOT = Path(__file__).resolve().parents[2]
EXERCISES = ROOT / "book" / "exercises"


def solutions(chapter):
    return import_module(f"book.exercises.solutions.ch{chapter:02d}")


def source(chapter, where):
    """Source of the exercise's function: the stub, or the solution."""
    path = EXERCISES / where / f"ch{chapter:02d}.py"
    return inspect.getsource(runpy_function(path, exercise(chapter).FUNCTION)).rstrip()


def runpy_function(path, name):
    return runpy.run_path(str(path))[name]


WRONG = [(chapter, name) for chapter in CHAPTERS for name in solutions(chapter).WRONG]


def test_every_chapter_has_an_exercise_with_two_wrong_answers():
    scripts = sorted(int(path.name[:2]) for path in (ROOT / "chapters").glob("[0-9]*.py"))
    assert scripts == CHAPTERS == list(range(1, 15))
    assert all(len(solutions(chapter).WRONG) == 2 for chapter in CHAPTERS)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_stub_is_not_an_answer(chapter, capsys):
    assert main([str(chapter)]) == 1
    assert "not written yet" in capsys.readouterr().out


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_solution_is_right(chapter, capsys):
    path = EXERCISES / "solutions" / f"ch{chapter:02d}.py"
    assert main([str(chapter), str(path)]) == 0
    assert capsys.readouterr().out == f"Chapter {chapter}, {exercise(chapter).FUNCTION}: right.\n"


@pytest.mark.parametrize("chapter, name", WRONG)
def test_a_wrong_answer_is_refused_by_a_case_that_shows_it(chapter, name):
    right, sentence = verdict(chapter, solutions(chapter).WRONG[name])
    assert not right
    assert "wrong. " in sentence and "stopped" not in sentence


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_chapter_shows_the_stub_and_the_solution(chapter):
    (script,) = (ROOT / "chapters").glob(f"{chapter:02d}_*.py")
    text, name = script.read_text(), exercise(chapter).FUNCTION
    assert source(chapter, "") in text
    assert f"check({chapter}, {name})" in text
    folded = "\n".join(f"# {line}".rstrip() for line in source(chapter, "solutions").splitlines())
    assert f"# ```python\n{folded}\n# ```\n" in text


def test_an_answer_that_stops_is_reported_with_its_error():
    right, sentence = verdict(1, lambda prompt, answer: answer / 0)
    assert not right
    assert (
        sentence == "Chapter 1, computed_tokens: stopped with ZeroDivisionError: division by zero"
    )


def test_a_chapter_without_an_exercise_is_named():
    with pytest.raises(ValueError, match=r"chapter must be one of \[1, .*14\], got 99"):
        verdict(99, max)


def test_the_command_line_refuses_a_file_without_the_function(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("def another(): ...\n")
    with pytest.raises(SystemExit):
        main(["4", str(path)])
    assert "must define the function blocks_needed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["4", str(tmp_path / "absent.py")])
    assert "file must be a Python file" in capsys.readouterr().err


def test_the_check_runs_in_a_notebook_wherever_it_was_started(capsys):
    check(1, lambda prompt, answer: 0)
    assert "computed_tokens(1, 1) returned 0, expected 1" in capsys.readouterr().out
    code = "from lib.bench.notebook.exercise import check; check(1, lambda p, a: a * p + a * (a - 1) // 2)"
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "chapters", env=environment, capture_output=True, text=True
    )  # fmt: skip
    assert ran.stdout == "Chapter 1, computed_tokens: right.\n", ran.stderr
