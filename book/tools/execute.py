"""Run chapters one after another, say how far they are, and keep their outputs in Jupyter Book's cache.

Jupyter Book finds a chapter's outputs there by its code cells alone. Each kept record also holds the digest of all that
the chapter depends on (chapter_inputs.py); where that differs, the record is out of date.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, CellExecutionError, DeadKernelError

from lib.bench.measure.system_load import LoadMonitor, measure_load

TIMEOUT = 1800  # seconds for one cell
LOAD_BEFORE = 1.0  # seconds for which the load is measured before a chapter
TICK = 15.0  # seconds between two lines of progress where the output is no terminal


class ChapterFailed(Exception):
    """A chapter's cell failed; the message names the cell."""


@dataclass(frozen=True)
class Outcome:
    """One chapter's run: its seconds, and other programs' load as `Load.to_json` gives it (None: unknown)."""

    seconds: float
    load_before: dict[str, Any] | None
    load: dict[str, Any] | None


class ExecutionCache:
    """The outputs of chapters, in the folder that Jupyter Book reads."""

    def __init__(self, folder: Path):
        self.cache = get_cache(str(folder))

    def is_fresh(self, notebook: Path, digest: str) -> bool:
        """Whether the outputs of this notebook are here and were made from inputs with this digest."""
        try:
            record = self.cache.match_cache_notebook(nbformat.read(notebook, as_version=4))
            self.cache.get_cache_bundle(record.pk)  # KeyError where the file is gone
        except KeyError:
            return False
        return (record.data or {}).get("digest") == digest

    def remove(self, chapter: str) -> None:
        """Forget all outputs of a chapter, by its name, whatever its code was."""
        for record in self.cache.list_cache_records():
            if Path(record.uri).stem == chapter:
                try:
                    self.cache.remove_cache(record.pk)
                except (
                    KeyError
                ):  # its file is gone: only the line in the data base is left, and is overwritten
                    continue

    def store(self, notebook: Path, executed: nbformat.NotebookNode, data: dict[str, Any]) -> None:
        """Keep a chapter's outputs in place of earlier ones. data: execution_seconds, digest."""
        self.remove(notebook.stem)
        bundle = CacheBundleIn(executed, str(notebook), data=data)
        self.cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


class _Progress:
    """Which code cell runs, since when, and a line about it: rewritten on a terminal, else one every TICK seconds."""

    def __init__(self, notebook: nbformat.NotebookNode, write: Callable[[str], None], live: bool):
        self.cells = [
            i
            for i, cell in enumerate(notebook.cells)
            if cell.cell_type == "code" and cell.source.strip()
        ]
        self.index: int | None = None
        self.write, self.live = write, live
        self.start = time.monotonic()

    def begin(self, cell_index: int) -> None:
        self.index = cell_index

    @property
    def position(self) -> str:
        """Such as "code cell 3 of 40"."""
        number = self.cells.index(self.index) + 1 if self.index in self.cells else 0
        return f"code cell {number} of {len(self.cells)}"

    async def report(self) -> None:
        while True:
            await asyncio.sleep(0.5 if self.live else TICK)
            line = f"  {self.position}, {time.monotonic() - self.start:.0f} s"
            self.write(f"\r\x1b[K{line}" if self.live else f"{line}\n")


def run_notebook(notebook: Path, write: Callable[[str], None], live: bool) -> nbformat.NotebookNode:
    """The notebook with its outputs. Raises ChapterFailed, which names the cell that failed."""
    content = nbformat.read(notebook, as_version=4)
    progress = _Progress(content, write, live)
    client = NotebookClient(
        content,
        timeout=TIMEOUT,
        record_timing=False,  # it would write times into the cells' metadata, by which the cache finds a notebook
        extra_arguments=["--log-level=ERROR"],  # the kernel's, which warns of its TCP port
        resources={"metadata": {"path": str(notebook.parent)}},
        on_cell_start=lambda cell, cell_index: progress.begin(cell_index),
    )
    root = str(notebook.resolve().parents[1])  # the kernel imports the lib beside this chapter
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]

    async def run() -> None:
        ticking = asyncio.create_task(progress.report())
        try:
            await client.async_execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
        finally:
            ticking.cancel()
            if live:
                write("\r\x1b[K")

    try:
        asyncio.run(run())
    except (CellControlSignal, DeadKernelError) as error:
        raise ChapterFailed(describe_failure(notebook, content, progress, error)) from error
    return content


def describe_failure(
    notebook: Path, content: nbformat.NotebookNode, progress: _Progress, error: Exception
) -> str:
    """Chapter, cell, the cell's first line of code, the error, and the end of its traceback."""
    source = "" if progress.index is None else content.cells[progress.index].source
    code = (line.strip() for line in source.splitlines())
    first = next((line for line in code if line and not line.startswith("#")), source[:80])
    if isinstance(error, CellExecutionError):
        said, traceback = f"{error.ename}: {error.evalue}", error.traceback
    else:  # a cell that took too long, a kernel that died
        said, traceback = f"{type(error).__name__}: {error}", ""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", traceback).rstrip().splitlines()[-25:]
    head = f"{notebook.stem}, {progress.position}, which begins `{first}`: {said}"
    return "\n".join([head, *(f"    {line}" for line in plain)])


def run_chapter(notebook: Path, cache: ExecutionCache, digest: str) -> Outcome:
    """Run one chapter, watch the load meanwhile, keep its outputs. Raises ChapterFailed and keeps nothing."""

    def write(text: str) -> None:
        print(text, end="", flush=True)

    before = measure_load(LOAD_BEFORE)
    monitor, start = LoadMonitor().start(), time.monotonic()
    try:
        executed = run_notebook(notebook, write, live=sys.stdout.isatty())
    finally:
        seconds, load = time.monotonic() - start, monitor.stop()
    cache.store(notebook, executed, {"execution_seconds": seconds, "digest": digest})
    return Outcome(seconds, before and before.to_json(), load and load.to_json())
