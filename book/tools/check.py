"""The whole test run: unit tests, then every chapter at smoke scale.  Ends by saying what passed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "JUPYTER_PREFER_ENV_PATH": "1",
    "JUPYTER_PLATFORM_DIRS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def run(title: str, *arguments: str, **environment: str) -> float:
    """One pytest run; its seconds.  Ends the program with pytest's status where a test fails."""
    print(f"== {title}", flush=True)
    start = time.monotonic()
    command = [sys.executable, "-m", "pytest", *arguments]
    status = subprocess.run(command, cwd=ROOT, env=SETTINGS | os.environ | environment).returncode
    if status != 0:
        print(f"\nFAILED: {title}", file=sys.stderr)
        sys.exit(status)
    return time.monotonic() - start


def main() -> None:
    extra = sys.argv[1:]
    passed = [("unit tests", run("Unit tests", "tests", "-m", "not gpu", "--durations=10", *extra))]
    chapters = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "chapters").glob("[0-9]*.ipynb"))
    if chapters:
        seconds = run(
            f"{len(chapters)} chapters at smoke scale",
            "--nbmake",
            "--nbmake-kernel=python3",
            "--nbmake-timeout=900",
            "--durations=0",
            *chapters,
            BOOK_SCALE="smoke",
        )
        passed.append((f"{len(chapters)} chapter(s) at smoke scale", seconds))
    print("\nPassed: " + "; ".join(f"{name} ({seconds:.0f} s)" for name, seconds in passed))


if __name__ == "__main__":
    main()
