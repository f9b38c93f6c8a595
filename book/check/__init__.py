"""Checks answers to the book's exercises, one per chapter: `verdict(4, blocks_needed)`.

The exercises to fill are in `book/exercises/chNN.py`; `book/exercises/solutions/chNN.py` holds a solution and wrong
answers with their names. The check of chapter N is `book/check/chNN.py`: `FUNCTION`, the name of the function to
write, and `check(answer)`, which raises `Wrong` for the first case in which the answer differs from the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

CHAPTERS = sorted(int(path.stem[2:]) for path in Path(__file__).parent.glob("ch[0-9][0-9].py"))


class Wrong(Exception):
    """An answer that differs from the expected one; the text shows the case."""


def expect(call: str, got: Any, expected: Any) -> None:
    """Raises Wrong unless `got == expected`; `call` is the case as the reader would write it."""
    if got != expected:
        raise Wrong(f"{call} returned {got!r}, expected {expected!r}")


def exercise(chapter: int) -> ModuleType:
    """The check of one chapter. Raises ValueError for a chapter that has none."""
    if chapter not in CHAPTERS:
        raise ValueError(f"chapter must be one of {CHAPTERS}, got {chapter!r}")
    return import_module(f"book.check.ch{chapter:02d}")


def verdict(chapter: int, answer: Callable[..., Any]) -> tuple[bool, str]:
    """Whether the answer is right, and one sentence about it. An error of the answer is part of the sentence."""
    module = exercise(chapter)
    name = f"Chapter {chapter}, {module.FUNCTION}:"
    try:
        module.check(answer)
    except NotImplementedError:
        return False, f"{name} not written yet."
    except Wrong as wrong:
        return False, f"{name} wrong. {wrong}"
    except Exception as error:
        return False, f"{name} stopped with {type(error).__name__}: {error}"
    return True, f"{name} right."
