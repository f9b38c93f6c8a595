"""Build the book: run the chapters whose inputs changed, then let Jupyter Book make the pages, with warnings as errors.

A chapter's inputs are its code, what that imports from lib/, the records that it reads, the installed versions, the
device and BOOK_SCALE (chapter_inputs.py). Chapters run here, one after another (execute.py); Jupyter Book finds their
outputs in its cache and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from book.tools.chapter_inputs import chapter_digests, digest, files_below  # noqa: E402
from book.tools.check_offline import remote_loads  # noqa: E402
from book.tools.execute import ChapterFailed, ExecutionCache, run_chapter  # noqa: E402
from book.tools.load_notes import state_path  # noqa: E402
from book.tools.machine import describe_machine  # noqa: E402

# The venv's kernel runs the chapters, whatever kernels the user has registered.
SETTINGS = {
    "JUPYTER_PREFER_ENV_PATH": "1",
    "JUPYTER_PLATFORM_DIRS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class State:
    """What the last build left in `_build/book_state.json`: the pages' digest, and each chapter's last run."""

    def __init__(self, root: Path):
        self.path = state_path(root)
        try:
            data = json.loads(self.path.read_text())
        except (FileNotFoundError, ValueError):
            data = {}
        self.pages: str | None = data.get("pages")
        self.chapters: dict[str, dict[str, Any]] = data.get("chapters", {})

    def save(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        text = json.dumps({"pages": self.pages, "chapters": self.chapters}, indent=1)
        self.path.write_text(text)

    def last_seconds(self, chapter: str, scale: str) -> float | None:
        """How long a chapter took when it last ran at this scale; None where it never did."""
        return self.chapters.get(chapter, {}).get("seconds_by_scale", {}).get(scale)

    def note(self, chapter: str, scale: str, outcome: dict[str, Any]) -> None:
        """Keep how a chapter's run went: seconds, load_before, load."""
        by_scale = self.chapters.get(chapter, {}).get("seconds_by_scale", {})
        by_scale = {**by_scale, scale: outcome["seconds"]}
        self.chapters[chapter] = {**outcome, "scale": scale, "seconds_by_scale": by_scale}


def duration(seconds: float | None) -> str:
    """Such as "48 s" or "3 min 05 s"; "an unknown time" for None."""
    if seconds is None:
        return "an unknown time"
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60:02d} s"


def run_chapters(
    root: Path, digests: dict[str, str], state: State, scale: str, force: bool
) -> tuple[list[str], list[str]]:
    """Run every chapter that is out of date, going on after a failure. The names of those that ran, and the failures."""
    cache = ExecutionCache(root / "_build" / ".jupyter_cache")
    notebooks = {name: root / "chapters" / f"{name}.ipynb" for name in digests}
    stale = [
        name
        for name, notebook in notebooks.items()
        if force or not cache.is_fresh(notebook, digests[name])
    ]
    if not stale:
        print("== No chapter's inputs changed: none runs", flush=True)
        return [], []
    if len(stale) == len(digests):
        # All chapters of a build share one measurement of the machine's ceilings, and it goes with their outputs.
        shutil.rmtree(root / "_build" / "machine", ignore_errors=True)
    known = [state.last_seconds(name, scale) for name in stale]
    guess = duration(sum(filter(None, known))) if all(known) else "an unknown time"
    print(f"== {len(stale)} of {len(digests)} chapters run; last time {guess}", flush=True)
    start, failures = time.monotonic(), []
    for name in stale:
        number = list(digests).index(name) + 1
        last = state.last_seconds(name, scale)
        took = f"took {duration(last)} last time" if last else "not timed yet"
        elapsed = duration(time.monotonic() - start)
        print(f"chapter {number} of {len(digests)}: {name}, {elapsed} elapsed, {took}", flush=True)
        try:
            outcome = run_chapter(notebooks[name], cache, digests[name])
        except ChapterFailed as failure:
            failures.append(str(failure))
            print(f"  FAILED: {failure}", file=sys.stderr, flush=True)
            continue
        state.note(name, scale, asdict(outcome))
        state.save()
        disturbed = (outcome.load or {}).get("disturbed")
        note = "; other programs disturbed it, and its page says so" if disturbed else ""
        print(f"  ran in {duration(outcome.seconds)}{note}", flush=True)
    return [name for name in stale if not any(f.startswith(f"{name},") for f in failures)], failures


def print_table(ran: list[str], digests: dict[str, str], state: State, machine: dict) -> None:
    facts = [f"{name.lower()} {value}" for name, value in machine.items() if name != "Packages"]
    print("\nExecuted on", "; ".join(facts))
    width = max(map(len, digests), default=0)
    for name in digests:
        run = state.chapters.get(name, {})
        seconds = f"{run['seconds']:.1f} s" if "seconds" in run else "-"
        print(f"  {name:<{width}}  {seconds:>9}  {'ran' if name in ran else 'from the cache'}")


def jupyter_book(root: Path) -> int:
    """Make the pages in a process of its own; its exit status."""
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    options = ["build", ".", "-W", "--keep-going", "--all"]
    return subprocess.run([*command, *options], cwd=root).returncode


def page_digest(root: Path, chapters: dict[str, str]) -> str:
    """A digest of all that the pages are made from; docstrings of lib/ stand on the page about the library."""
    sources = [*files_below(root / "book"), *files_below(root / "lib", ".py")]
    notebooks = files_below(root / "chapters", ".ipynb")
    return digest(
        root, [*sources, *notebooks, root / "_config.yml", root / "_toc.yml"], *chapters.values()
    )


def build(root: Path, force: bool) -> int:
    """The whole build; its exit status."""
    machine = describe_machine()
    digests = chapter_digests(root, machine)
    pages = page_digest(root, digests)
    state, index = State(root), root / "_build" / "html" / "index.html"
    ran: list[str] = []
    if state.pages == pages and index.exists() and not force:
        print("Nothing changed since the last build.")
    else:
        state.pages = None
        state.save()
        ran, failures = run_chapters(root, digests, state, machine["Scale"], force)
        if failures:
            print("\nThe book did NOT build. Failed:", file=sys.stderr)
            print(
                *(f"  {failure.splitlines()[0]}" for failure in failures), sep="\n", file=sys.stderr
            )
            return 1
        print("== Making the pages", flush=True)
        status = jupyter_book(root)
        if status != 0:
            print("\nThe book did NOT build: warnings are errors here; see above.", file=sys.stderr)
            return status
    print_table(ran, digests, state, machine)
    remote = remote_loads(index.parent)
    if remote:
        print("\nThe book would load these from other hosts:", *remote, sep="\n  ", file=sys.stderr)
        return 1
    state.pages = pages
    state.save()
    print(f"\nThe book is built and reads without a network. Open\n\n    {index}\n")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--force", action="store_true", help="execute every chapter again, whatever the cache holds"
    )
    options = parser.parse_args()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    return build(ROOT, options.force)


if __name__ == "__main__":
    sys.exit(main())
