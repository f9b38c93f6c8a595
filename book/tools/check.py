"""The whole test run: unit tests, then every chapter at smoke scale. Both run; then it says what passed and failed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUDGET = 20 * 60  # seconds for both, on two quiet cores
PROCESSES = 4  # at most, for the unit tests


def run(title: str, arguments: list[str], root: Path) -> tuple[int, float]:
    """One pytest run: its exit status and its seconds."""
    print(f"== {title}", flush=True)
    start = time.monotonic()
    status = subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=root).returncode
    return status, time.monotonic() - start


def side_by_side() -> list[str]:
    """pytest's arguments to run the unit tests in several processes, each of which computes on one thread.

    The tests of one file stay in one process: many share a server or an engine.
    """
    if importlib.util.find_spec("xdist") is None:
        return []
    return ["-n", str(min(PROCESSES, os.cpu_count() or 1)), "--dist", "loadfile"]


def check(root: Path, extra: list[str]) -> int:
    """Both halves, whatever the first one says. 0 when both passed, else the first failure's status."""
    chapters = [str(p.relative_to(root)) for p in sorted((root / "chapters").glob("[0-9]*.ipynb"))]
    halves = {"unit tests": ["tests", "-m", "not gpu", "--durations=10", *side_by_side(), *extra]}
    if chapters:
        title = f"{len(chapters)} chapters at smoke scale"
        halves[title] = ["--nbmake", "--durations=0", *chapters]
    results = {title: run(title, arguments, root) for title, arguments in halves.items()}
    print()
    for title, (status, seconds) in results.items():
        said = "passed" if status == 0 else f"FAILED (pytest's status {status})"
        print(f"{said}: {title}, {seconds:.0f} s")
    total = sum(seconds for _, seconds in results.values())
    print(f"together {total / 60:.1f} minutes; the budget is {BUDGET / 60:.0f} on two quiet cores")
    return next((status for status, _ in results.values() if status), 0)


if __name__ == "__main__":
    # Chapters run at smoke scale whatever the caller's scale is.
    os.environ["BOOK_SCALE"] = "smoke"
    sys.exit(check(ROOT, sys.argv[1:]))
