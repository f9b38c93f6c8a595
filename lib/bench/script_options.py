"""The two command-line options that every chapter's script understands: `--record DIR` and `--figures DIR`.

Introduced in chapter 1.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path


def in_notebook() -> bool:
    """Whether a Jupyter or Colab kernel runs this (a terminal IPython counts as a script)."""
    if "IPython" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython()
    return shell is not None and hasattr(shell, "kernel")


@dataclass(frozen=True)
class Options:
    """What this run was asked to write; None means: write nothing."""

    record: Path | None = None
    figures: Path | None = None


def options(argv: list[str] | None = None) -> Options:
    """Reads the options from `argv` (default: the script's own).

    Arguments of others are skipped: under pytest or an IDE, `sys.argv` is theirs. A notebook's kernel has no options.
    """
    if argv is None:
        if in_notebook():
            return Options()
        argv = sys.argv[1:]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--record", type=Path, metavar="DIR")
    parser.add_argument("--figures", type=Path, metavar="DIR")
    known, _ = parser.parse_known_args(argv)
    return Options(record=known.record, figures=known.figures)
