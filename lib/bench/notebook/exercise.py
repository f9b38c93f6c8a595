"""Checks the reader's answer to a chapter's exercise, in the notebook: `check(4, blocks_needed)`.

The checks are in `book/check/`, which is no part of the installed packages; the folder is found in the repository.

Introduced in chapter 1.
"""

import sys
from collections.abc import Callable
from typing import Any

from lib.bench.paths import repository


def check(chapter: int, answer: Callable[..., Any]) -> None:
    """Prints whether `answer` is right, or the first case in which it is not. Raises ValueError for an unknown chapter."""
    root = str(repository())
    if root not in sys.path:
        sys.path.insert(0, root)
    from book.check import verdict

    print(verdict(chapter, answer)[1])
