"""Build the book: decide what to execute, run Jupyter Book with warnings as errors, report what ran and what to open.

Jupyter Book caches a chapter's execution under the notebook's text alone.  The outputs also depend on lib/, on the
recorded runs, on the installed versions, on the device and on BOOK_SCALE, so a change in any of those drops the cache.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from book.tools.check_offline import remote_loads  # noqa: E402
from book.tools.machine import describe_machine  # noqa: E402

BUILD = ROOT / "_build"
CACHE = BUILD / ".jupyter_cache"
HTML = BUILD / "html"
STATE = BUILD / "book_state.json"


def digest(paths: list[Path], *extra: str) -> str:
    """A hash of the files' names and contents, and of the extra strings."""
    total = hashlib.sha256("\0".join(extra).encode())
    for path in sorted(paths):
        total.update(f"\0{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return total.hexdigest()


def files(folder: str, *suffixes: str) -> list[Path]:
    """Files under a folder, caches and hidden ones left out."""
    found = (ROOT / folder).rglob("*")
    return [
        p
        for p in found
        if p.is_file()
        and "__pycache__" not in p.parts
        and not p.name.startswith(".")
        and (not suffixes or p.suffix in suffixes)
    ]


def execution_key(machine: dict[str, str]) -> str:
    """What a chapter's outputs depend on beside its own text."""
    installed = sorted(
        {f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions()}
    )
    return digest(
        files("lib", ".py") + files("book/measurements", ".json"), *machine.values(), *installed
    )


def page_key(execution: str) -> str:
    """What the built pages depend on."""
    sources = (
        files("book") + files("chapters", ".ipynb") + [ROOT / "_config.yml", ROOT / "_toc.yml"]
    )
    return digest(sources, execution)


def executions(since: float) -> list[tuple[str, str, str]]:
    """(chapter, seconds, "ran" or "from the cache") for what the cache holds of the chapters as they are now."""
    from jupyter_cache import get_cache

    newest: dict[str, tuple[float, float]] = {}
    for record in get_cache(str(CACHE)).list_cache_records() if CACHE.exists() else []:
        created = record.created.replace(tzinfo=None) if record.created else None
        stamp = (created - type(created)(1970, 1, 1)).total_seconds() if created else 0.0
        name = Path(record.uri).stem
        seconds = float((record.data or {}).get("execution_seconds", 0.0))
        if stamp >= newest.get(name, (0.0, 0.0))[0]:
            newest[name] = (stamp, seconds)
    chapters = [p.stem for p in sorted((ROOT / "chapters").glob("[0-9]*.ipynb"))]
    return [
        (name, f"{newest[name][1]:.1f} s", "ran" if newest[name][0] >= since else "from the cache")
        for name in chapters
        if name in newest
    ]


def print_table(rows: list[tuple[str, str, str]], machine: dict[str, str]) -> None:
    facts = [f"{name.lower()} {value}" for name, value in machine.items() if name != "Packages"]
    print("\nExecuted on", "; ".join(facts))
    if not rows:
        print("  no chapter to execute")
    width = max((len(row[0]) for row in rows), default=0)
    for name, seconds, how in rows:
        print(f"  {name:<{width}}  {seconds:>9}  {how}")


def print_failures(since: float) -> None:
    """The tracebacks of the cells that failed in this build."""
    for report in sorted((HTML / "reports").rglob("*.err.log")):
        if report.stat().st_mtime >= since:
            print(
                f"\n--- {report.relative_to(ROOT)}\n{report.read_text(errors='replace').rstrip()}",
                file=sys.stderr,
            )


def jupyter_book(fresh: bool) -> int:
    """Run the build in a process of its own; its exit status."""
    command = Path(sys.executable).with_name("jupyter-book")
    settings = {
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTER_PLATFORM_DIRS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    call = [
        str(command) if command.exists() else "jupyter-book",
        "build",
        ".",
        "-W",
        "--keep-going",
        "--all",
    ]
    if fresh:
        print("== What the chapters depend on is new or has changed: all of them run", flush=True)
    return subprocess.run(call, cwd=ROOT, env=settings | os.environ).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--force", action="store_true", help="execute every chapter again, whatever the cache holds"
    )
    options = parser.parse_args()
    machine = describe_machine()
    execution = execution_key(machine)
    pages = page_key(execution)
    state = json.loads(STATE.read_text()) if STATE.exists() else {}
    index = HTML / "index.html"
    start = time.time()

    if state.get("pages") == pages and index.exists() and not options.force:
        print("Nothing changed since the last build.")
    else:
        fresh = options.force or state.get("execution") != execution
        if fresh:
            # The machine's ceilings are measured once for all chapters of a build, and go with their outputs.
            for stale in (CACHE, BUILD / "machine"):
                shutil.rmtree(stale, ignore_errors=True)
        BUILD.mkdir(exist_ok=True)
        STATE.write_text(json.dumps({"execution": execution}))
        status = jupyter_book(fresh)
        if status != 0:
            print_failures(start)
            print("\nThe book did NOT build: warnings are errors here; see above.", file=sys.stderr)
            return status
    print_table(executions(start), machine)
    remote = remote_loads(HTML)
    if remote:
        print("\nThe book would load these from other hosts:", *remote, sep="\n  ", file=sys.stderr)
        return 1
    STATE.write_text(json.dumps({"execution": execution, "pages": pages}))
    print(f"\nThe book is built and reads without a network. Open\n\n    {index}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
