"""A chapter's time counts from the start of its script, or of the cell that imports; never from the record's creation."""

import subprocess
import sys
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient

from lib.bench.paths import repository
from lib.bench.records import chapter_clock


def test_a_script_counts_from_the_start_of_its_process():
    code = (
        "import time; time.sleep(1.5)\n"
        "from lib.bench.records.chapter_clock import chapter_seconds; print(chapter_seconds())"
    )
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=repository()
    )
    assert 1.5 <= float(done.stdout) <= time.time() - began + 0.2  # the kernel counts in ticks


def test_a_notebook_counts_from_the_cell_that_imports():
    cells = [
        "import time; time.sleep(4)",  # a kernel that waits for its reader
        "began = time.time(); time.sleep(1)\n"
        "from lib.bench.records.chapter_clock import chapter_seconds",
        "time.sleep(0.5)\nprint(chapter_seconds() - (time.time() - began))",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": repository()}}
    ).execute()
    (output,) = notebook.cells[2].outputs
    assert -0.1 < float(output.text) < 3


def test_what_a_shell_says_of_its_running_cell():
    date = datetime(2026, 1, 1, tzinfo=UTC)
    kernel = SimpleNamespace(get_parent=lambda: {"header": {"date": date}})
    assert chapter_clock._cell_start(SimpleNamespace(kernel=kernel)) == date.timestamp()
    silent = SimpleNamespace(get_parent=lambda: {})
    assert chapter_clock._cell_start(SimpleNamespace(kernel=silent)) == chapter_clock._IMPORTED
    assert chapter_clock._cell_start(None) is None
    assert chapter_clock._cell_start(SimpleNamespace()) is None  # IPython in a terminal


def test_without_psutil_it_counts_from_the_import(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert chapter_clock._process_start() == pytest.approx(chapter_clock._IMPORTED)
