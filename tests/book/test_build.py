"""`make book`: a chapter runs again when something that it depends on changed, and a failure names its cell."""

import json
from pathlib import Path

import pytest
from docutils import nodes
from docutils.utils import new_document

from book.tools import build, execute, load_notes
from book.tools.chapter_inputs import chapter_digests
from book.tools.execute import ChapterFailed, ExecutionCache
from book.tools.notebooks import to_notebook
from lib.bench.measure.system_load import Load
from lib.bench.records.import_graph import ImportGraph

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {"Hardware": "a toy", "Scale": "smoke"}
LIB = {
    "__init__.py": 'from lib.engine import now\nTABLE = {"LLM": "lib.engine.llm"}\ndef __getattr__(name): ...\n',
    "engine/now.py": "",
    "engine/__init__.py": "",
    "engine/llm.py": "from lib.cache import blocks\n",
    "cache/__init__.py": "",
    "cache/blocks.py": "",
    "serving/__init__.py": "",
    "serving/__main__.py": "from lib.engine import llm\nfrom lib.serving.page import page\n",
    "serving/page.py": "def page():\n    from . import late\n",
    "serving/late.py": "",
    "serving/static/app.js": "//",
    "bench/__init__.py": "",
    "bench/files.py": 'NAME = "published.json"\n',
    "bench/timing.py": "",
}
CHAPTERS = {
    "01_first": "# %%\nfrom lib.bench import timing\n",
    "02_second": "# %%\nfrom lib import LLM\nfrom lib.bench.files import NAME\nname = 'other.json'\n",
    "03_third": "# %%\nimport subprocess, sys\ncommand = [sys.executable, '-m', 'lib.serving']\n",
}


@pytest.fixture
def repository(tmp_path):
    for name, text in LIB.items():
        path = tmp_path / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "chapters").mkdir()
    for name, text in CHAPTERS.items():
        write_chapter(tmp_path, name, text)
    for folder, name in [("cpu", "01_first"), ("cpu", "02_second"), ("reference", "published"),
                         ("reference", "other"), ("reference", "unread")]:  # fmt: skip
        path = tmp_path / "book" / "measurements" / folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return tmp_path


def write_chapter(root, name, text):
    (root / "chapters" / f"{name}.ipynb").write_text(to_notebook(text))


CHANGES = {
    "lib/bench/timing.py": "01",
    "lib/bench/files.py": "02",
    "lib/bench/__init__.py": "01 02",
    "lib/cache/blocks.py": "02 03",  # through lib's table of lazy imports, and through a module run by name
    "lib/engine/llm.py": "02 03",
    "lib/serving/late.py": "03",  # imported inside a function
    "lib/serving/static/app.js": "03",  # no Python, but the package's
    "lib/__init__.py": "01 02 03",
    "lib/engine/now.py": "01 02 03",  # imported by lib itself, and not lazily
    "book/measurements/cpu/01_first.json": "01",
    "book/measurements/reference/published.json": "02",  # named in a module that the chapter imports
    "book/measurements/reference/other.json": "02",  # named in the chapter
    "book/measurements/reference/unread.json": "",
    "lib/unused.py": "",
}


@pytest.mark.parametrize("path", CHANGES)
def test_a_change_reaches_the_chapters_that_depend_on_it_and_no_others(repository, path):
    before = chapter_digests(repository, MACHINE)
    file = repository / path
    file.write_text((file.read_text() if file.exists() else "") + "\n")
    after = chapter_digests(repository, MACHINE)
    assert [name[:2] for name in before if before[name] != after[name]] == CHANGES[path].split()


def test_a_chapters_own_code_counts_and_its_prose_does_not(repository):
    before = chapter_digests(repository, MACHINE)
    write_chapter(repository, "02_second", "# %% [markdown]\n# New prose.\n\n" + CHAPTERS["02_second"])  # fmt: skip
    assert chapter_digests(repository, MACHINE) == before
    write_chapter(repository, "02_second", CHAPTERS["02_second"] + "x = 1\n")
    after = chapter_digests(repository, MACHINE)
    assert [name for name in before if before[name] != after[name]] == ["02_second"]


def test_the_machine_and_the_scale_count_for_all(repository):
    before = chapter_digests(repository, MACHINE)
    after = chapter_digests(repository, {**MACHINE, "Scale": "cpu"})
    assert all(before[name] != after[name] for name in CHAPTERS)


def test_the_graph_of_this_repository_keeps_the_load_test_apart():
    graph = ImportGraph(ROOT)
    first = graph.closure("from lib import LLM\nfrom lib.bench.measure.timing import measure\n")
    assert {"lib.engine.llm", "lib.engine.assemble", "lib.cache.block_manager"} <= first
    assert not [name for name in first if name.startswith(("lib.serving", "lib.loadtest"))]
    server = graph.closure("from lib.serving.server_process import ServerProcess\n")
    assert {"lib.serving.__main__", "lib.serving.sse", "lib.engine.llm"} <= server


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(execute, "LOAD_BEFORE", 0.05)


FAILING = """\
# %%
x = 1

# %%
# a comment
y = x / 0
"""


@pytest.mark.slow
def test_chapters_run_once_and_a_failure_names_the_cell(repository, quick, capfd):
    for name in CHAPTERS:
        write_chapter(repository, name, f"# %%\nprint('this is {name}')\n")
    write_chapter(repository, "02_second", FAILING)
    state = build.State(repository)
    digests = chapter_digests(repository, MACHINE)
    ran, failures = build.run_chapters(repository, digests, state, "smoke", False)
    out = capfd.readouterr().out
    assert ran == ["01_first", "03_third"], "the others go on"
    assert "chapter 1 of 3: 01_first, 0 s elapsed, not timed yet" in out
    (failure,) = failures
    assert failure.splitlines()[0] == (
        "02_second, code cell 2 of 2, which begins `y = x / 0`: ZeroDivisionError: division by zero"
    )
    write_chapter(repository, "02_second", FAILING.replace("/ 0", "/ 1"))
    digests = chapter_digests(repository, MACHINE)
    state = build.State(repository)  # as the next build finds it
    assert build.run_chapters(repository, digests, state, "smoke", False) == (["02_second"], [])
    assert build.run_chapters(repository, digests, state, "smoke", False) == ([], [])
    changed = {**digests, "03_third": "changed"}
    capfd.readouterr()
    ceilings = repository / "_build" / "machine"
    ceilings.mkdir()
    assert build.run_chapters(repository, changed, state, "smoke", False) == (["03_third"], [])
    assert ceilings.exists(), "the other chapters' outputs were made with them"
    last = build.State(repository).last_seconds("03_third", "smoke")
    assert last and "s last time" in capfd.readouterr().out
    assert build.State(repository).last_seconds("03_third", "cpu") is None
    ran, _ = build.run_chapters(repository, changed, state, "smoke", True)
    assert ran == list(CHAPTERS) and not ceilings.exists(), "forced: all of them, and all anew"


@pytest.mark.slow
def test_jupyter_book_finds_what_the_build_ran(repository, quick):
    import logging

    import nbformat
    from myst_nb.core.config import NbParserConfig
    from myst_nb.core.execute.cache import NotebookClientCache

    write_chapter(repository, "01_first", "# %%\nprint('from the build')\n")
    path = repository / "chapters" / "01_first.ipynb"
    folder = repository / "_build" / ".jupyter_cache"
    cache = ExecutionCache(folder)
    outcome = execute.run_chapter(path, cache, "digest")
    assert cache.is_fresh(path, "digest") and not cache.is_fresh(path, "another")
    config = NbParserConfig(execution_mode="cache", execution_cache_path=str(folder))
    client = NotebookClientCache(
        nbformat.read(path, as_version=4), None, config, logging.getLogger("test")
    )
    client.start_client()  # without a path it would raise where it had to run the chapter
    assert client.notebook.cells[0].outputs[0]["text"] == "from the build\n"
    assert client.exec_metadata["runtime"] == pytest.approx(outcome.seconds)
    cache.remove("01_first")
    assert not cache.is_fresh(path, "digest")


@pytest.mark.slow
def test_a_cell_that_kills_its_kernel_is_named(repository, quick):
    write_chapter(repository, "01_first", "# %%\nimport os\nos._exit(3)\n")
    path = repository / "chapters" / "01_first.ipynb"
    cache = ExecutionCache(repository / "_build" / ".jupyter_cache")
    with pytest.raises(ChapterFailed, match="01_first, code cell 1 of 1, which begins `import os`"):
        execute.run_chapter(path, cache, "digest")
    assert not cache.is_fresh(path, "digest")


def test_durations_read_well():
    assert [build.duration(s) for s in (3.4, 119, 185, None)] == ["3 s", "119 s", "3 min 05 s", "an unknown time"]  # fmt: skip


BUSY = Load(60.0, 2, others_mean=0.4, others_max=0.9, busy_samples=0.7, steal=0.0).to_json()
QUIET = Load(60.0, 2, others_mean=0.01, others_max=0.1, busy_samples=0.0, steal=0.0).to_json()


def page(root, docname="chapters/01_first"):
    document = new_document("page")
    document += nodes.section("", nodes.title(text="Title"), nodes.paragraph(text="First."))
    load_notes.warn_on_top(document, docname, root)
    return [type(child).__name__ for child in document[0]], document.astext()


def write_state(root, load):
    path = load_notes.state_path(root)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"chapters": {"01_first": {"load_before": QUIET, "load": load}}}))


def test_a_disturbed_chapter_says_so_below_its_title(tmp_path):
    write_state(tmp_path, BUSY)
    shape, text = page(tmp_path)
    assert shape == ["title", "warning", "paragraph"]
    assert "Other programs used 40\u00a0% of the CPU while this chapter ran" in text
    assert "its times may be too long" in text
    assert page(tmp_path, "chapters/02_second")[0] == ["title", "paragraph"]
    assert page(tmp_path, "book/setup")[0] == ["title", "paragraph"]


@pytest.mark.parametrize("load", [QUIET, None, "no state"])
def test_a_quiet_chapter_and_one_of_unknown_load_say_nothing(tmp_path, load):
    if load != "no state":
        write_state(tmp_path, load)
    assert page(tmp_path)[0] == ["title", "paragraph"]


def test_the_execution_page_lists_the_load_of_each_chapter(tmp_path):
    assert "without a measurement" in load_notes.load_table(tmp_path).astext()
    write_state(tmp_path, BUSY)
    rows = [row.astext().split() for row in load_notes.load_table(tmp_path).findall(nodes.row)]
    assert rows[1][0] == "chapters/01_first" and rows[1][-1] == "no" and "40" in rows[1]
    write_state(tmp_path, None)
    assert "unknown" in load_notes.load_table(tmp_path).astext()
