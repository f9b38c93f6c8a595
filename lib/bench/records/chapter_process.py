"""One chapter in a process of its own: run it, end it in time, and keep its record and figures.

Introduced in chapter 1.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from lib.bench.measure.system_load import LoadMonitor, measure_load
from lib.bench.paths import repository
from lib.bench.records.files import read_record
from lib.bench.records.load_notes import note_load, was_disturbed
from lib.bench.records.preflight import hub_answers
from lib.bench.records.source_digest import source_digest

LOAD_BEFORE = 1.0  # seconds for which the load is measured before each chapter


@dataclass
class Result:
    """How one chapter went: status is "recorded", "up to date", "failed", "out of time" or "not run".

    disturbed: whether other programs made the record's times unreliable.
    """

    chapter: str
    status: str
    seconds: float = 0.0
    headline: str = ""
    detail: str = ""
    disturbed: bool = False


def record_path(script: Path, out: Path, slug: str) -> Path:
    """Where a chapter's record goes."""
    return out / slug / f"{script.stem}.json"


def headline(record: dict) -> str:
    """The chapter's headline figure as text."""
    if not record["headlines"]:
        return ""
    first = record["headlines"][0]
    value = first["value"]
    number = f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}"
    return f"{first['text']}: {number} {first['unit']}".strip()


def run_chapter(
    script: Path, out: Path, slug: str, at_scale: str, seconds_left: float, force: bool
) -> Result:
    """Runs one chapter in its own process, and kills it with all of its children when its time is over."""
    path = record_path(script, out, slug)
    try:
        there = read_record(path)
    except ValueError as error:
        return Result(script.stem, "failed", detail=str(error))
    if (
        there
        and not force
        and there["scale"] == at_scale
        and there["source"] == source_digest(script)
    ):
        return Result(
            script.stem, "up to date", headline=headline(there), disturbed=was_disturbed(there)
        )
    if seconds_left <= 0:
        return Result(script.stem, "not run", detail="the budget was spent")
    environment = {
        **os.environ,
        "BOOK_SCALE": at_scale,
        "MPLBACKEND": "Agg",
        "PYTHONUNBUFFERED": "1",
    }
    if not hub_answers():  # else each model that is loaded waits for the hub before it does without
        environment["HF_HUB_OFFLINE"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(repository()), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    load_before = measure_load(min(LOAD_BEFORE, seconds_left))
    start = time.perf_counter()
    before = path.stat().st_mtime_ns if there else None
    monitor = LoadMonitor().start()
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as drawn:
        command = [
            sys.executable,
            str(script.resolve()),
            "--record",
            str(out.resolve()),
            "--figures",
            drawn,
        ]
        child = subprocess.Popen(
            command, cwd=script.resolve().parent, env=environment, stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = child.wait(timeout=seconds_left)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill_group(
                child
            )  # also what a chapter that ended left behind, such as a server; also on Ctrl-C
            load = monitor.stop()
        log.seek(0)
        tail = "\n".join(log.read().decode(errors="replace").splitlines()[-25:])
        seconds = time.perf_counter() - start
        if code is None:
            return Result(
                script.stem,
                "out of time",
                seconds,
                detail="killed: it outran its budget, or what was left of the whole",
            )
        if code != 0:
            partial = path.with_name(path.name + ".partial")
            kept = f" (measured until then: {partial})" if partial.is_file() else ""
            return Result(script.stem, "failed", seconds, detail=f"exit code {code}{kept}\n{tail}")
        if not path.is_file() or path.stat().st_mtime_ns == before:
            return Result(
                script.stem,
                "failed",
                seconds,
                detail=f"ended well but wrote no {path.name}\n{tail}",
            )
        keep_figures(Path(drawn), path.parent / "figures", script.stem[:2])
    record = note_load(path, load_before, load)
    disturbed = was_disturbed(record)
    detail = f"disturbed: {load}" if disturbed else ""
    return Result(script.stem, "recorded", seconds, headline(record), detail, disturbed)


def keep_figures(drawn: Path, folder: Path, number: str) -> None:
    """Puts a chapter's figures (NN_name.svg) in the place of those of its last record."""
    for old in folder.glob(f"{number}_*.svg"):
        old.unlink()
    for new in sorted(drawn.glob("*.svg")):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(new, folder / new.name)


def _kill_group(child: subprocess.Popen) -> None:
    try:
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    except (ProcessLookupError, PermissionError):
        pass  # all gone
    child.wait()
