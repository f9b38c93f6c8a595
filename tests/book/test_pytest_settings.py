"""`pytest --nbmake` at the root collects unit tests and chapters and imports no chapter; `make test` runs both halves."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SIDE_EFFECT = "from pathlib import Path\nPath(__file__).with_name('imported').write_text('')\n"
NOTEBOOK = "# %%\nimport os\nassert os.environ['BOOK_SCALE'] == 'smoke'\n"


@pytest.fixture
def repository(tmp_path):
    """A repository with this one's pytest settings, a unit test, and a chapter that is named like a test module."""
    from book.tools.notebooks import to_notebook

    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_one.py").write_text("def test_one(): pass\n")
    (tmp_path / "chapters").mkdir()
    (tmp_path / "chapters" / "06_load_test.py").write_text(SIDE_EFFECT + "def test_two(): pass\n")
    (tmp_path / "chapters" / "06_load_test.ipynb").write_text(to_notebook(NOTEBOOK))
    return tmp_path


def run_pytest(root, *arguments):
    command = [sys.executable, "-m", "pytest", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)


def test_this_repository_collects_its_tests_and_exactly_its_chapters():
    result = run_pytest(ROOT, "--nbmake", "--collect-only", "-q")
    assert result.returncode == 0, result.stdout[-2000:]
    collected = {line.partition("::")[0] for line in result.stdout.splitlines() if "::" in line}
    chapters = {f"chapters/{p.name}" for p in (ROOT / "chapters").glob("*.ipynb")}
    tests = {str(p.relative_to(ROOT)) for p in (ROOT / "tests").rglob("test_*.py")}
    assert collected == chapters | tests


@pytest.mark.parametrize("where", [[], ["chapters"]], ids=["root", "chapters"])
def test_no_chapter_is_imported(repository, where):
    result = run_pytest(repository, "--nbmake", "--collect-only", "-q", *where)
    collected = re.findall(r"^\S+::", result.stdout, re.M)
    assert "chapters/06_load_test.ipynb::" in collected, result.stdout
    assert not [name for name in collected if name.startswith("chapters/") and ".py::" in name]
    assert not (repository / "chapters" / "imported").exists()


def test_chapters_run_at_smoke_scale(repository, monkeypatch):
    monkeypatch.delenv("BOOK_SCALE", raising=False)
    result = run_pytest(repository, "--nbmake", "-q")
    assert result.returncode == 0 and "2 passed" in result.stdout, result.stdout


def test_both_halves_run_and_both_are_reported(repository, capfd):
    from book.tools.check import check

    assert check(repository, []) == 0
    out = capfd.readouterr().out
    assert re.search(r"passed: unit tests, \d+ s", out) and re.search(r"passed: 1 chapters at .*, \d+ s", out)  # fmt: skip
    (repository / "tests" / "test_one.py").write_text("def test_one(): assert False\n")
    assert check(repository, []) == 1
    out = capfd.readouterr().out
    assert "FAILED (pytest's status 1): unit tests" in out and "passed: 1 chapters" in out
