"""The appendix on the published memory: every number of its text is a count, and the page builds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from book.tools import published_memory as page
from lib.bench.findings.paged_cache import published_memory as counted

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "book/published_memory.md").read_text()


def test_every_placeholder_of_the_page_is_filled_and_every_number_is_used():
    assert "<<" not in page.filled(TEXT)
    found = counted.audit()
    for name in page.numbers(found):
        assert f"<<{name}>>" in TEXT, name
    for name in page.tables(found):
        assert f"<<table {name}>>" in TEXT, name
    with pytest.raises(KeyError, match="nothing"):
        page.filled("<<nothing>>")


def test_the_page_builds_with_its_tables(tmp_path):
    source = tmp_path / "page"
    source.mkdir()
    text = re.sub(r"\{(cite|numref|eq|ref)(:p)?\}`[^`]*`", "", TEXT)
    (source / "index.md").write_text(text)
    (source / "scoreboard.md").write_text("---\norphan: true\n---\n\n(scoreboard)=\n# Scoreboard\n")
    (source / "conf.py").write_text(
        f"import sys\n\nsys.path.insert(0, {str(ROOT)!r})\n"
        "extensions = ['myst_nb', 'sphinx_design', 'book.tools.book_ext']\n"
    )
    done = subprocess.run([sys.executable, "-m", "sphinx", "-W", "-q", str(source), str(source / "out")],
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    html = (source / "out" / "index.html").read_text()
    assert html.count("<table") == 5 and "<<" not in re.sub(r"<[^>]*>", " ", html)


def test_the_audit_is_equal_to_the_published_figures():
    found = counted.audit()
    assert counted.SLOT == 72 and found.pool == 2137.5 and found.per_sequence == 4.5
    assert [round(r, 2) for r in found.ratio] == [8.75, 5.89, 8.49, 16.0]
    assert found.crossing == [21, 31, 1, 1]
    assert all(5.9 < rest < 8.2 for rest in found.rests)


@pytest.mark.parametrize("table, column, row", [("by_batch", "contiguous_mb", 3), ("stress", "contiguous_mb", 0)])  # fmt: skip
def test_a_published_entry_that_is_off_the_line_is_an_error(monkeypatch, table, column, row):
    data = counted.sweeps()
    data[table][column][row] += 0.1
    monkeypatch.setattr(counted, "sweeps", lambda: data)
    with pytest.raises(ValueError, match="not on the line"):
        counted.audit()


def test_a_stress_run_that_fails_elsewhere_is_an_error(monkeypatch):
    data = counted.sweeps()
    data["stress"]["num_blocks"] *= 4
    monkeypatch.setattr(counted, "sweeps", lambda: data)
    with pytest.raises(ValueError, match="where the paged run failed"):
        counted.stress()


def test_a_reset_holds_three_halves_of_a_cache():
    assert counted.peak_of_reset(36, 36) == 108
    assert counted.peak_of_reset(10, 50) == 110
