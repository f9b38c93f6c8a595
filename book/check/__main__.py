"""`python -m book.check 4`: checks the answer in book/exercises/ch04.py, or in another file. Exits 0 if it is right."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

from book.check import CHAPTERS, exercise, verdict

EXERCISES = Path(__file__).resolve().parents[1] / "exercises"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m book.check", description=__doc__)
    parser.add_argument("chapter", type=int, choices=CHAPTERS, metavar="CHAPTER")
    parser.add_argument("file", type=Path, nargs="?", help="default: book/exercises/chNN.py")
    options = parser.parse_args(arguments)
    path = options.file or EXERCISES / f"ch{options.chapter:02d}.py"
    if not path.is_file():
        parser.error(f"file must be a Python file with the answer, got {path}")
    name = exercise(options.chapter).FUNCTION
    answer = runpy.run_path(str(path)).get(name)
    if not callable(answer):
        parser.error(f"{path} must define the function {name}")
    right, sentence = verdict(options.chapter, answer)
    print(sentence)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
