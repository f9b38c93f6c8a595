"""A chapter runs as `python chapters/NN_name.py` on a machine that has no Jupyter and no display."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "chapters").glob("[0-9]*.py"))

# As if none of these were installed. Pure-Python finders run in order, so the first one decides.
WITHOUT_JUPYTER = """
import runpy, sys

HIDDEN = {"IPython", "ipykernel", "ipywidgets", "jupyter", "jupyter_core", "jupyter_client", "jupyter_book", "jupytext",
          "nbformat", "nbclient", "myst_nb", "sphinx", "pytest"}

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r} (hidden)", name=name)

sys.meta_path.insert(0, Hide())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_without_jupyter(script: Path, folder: Path) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "BOOK_SCALE": "smoke",
        "MPLBACKEND": "Agg",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_JUPYTER, str(script)],
        cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


# Run whole: one without a server, one with a server of its own, one with an optional library. `pytest --nbmake` runs the
# others' cells; what differs in a script is what it imports.
WHOLE = ("09_prefix_caching", "05_serving", "12_structured_output")


@pytest.mark.slow
@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.stem in WHOLE], ids=WHOLE)
def test_chapter_runs_as_a_script(script, tmp_path):
    result = run_without_jupyter(script, tmp_path)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert list(tmp_path.iterdir()) == [], "a chapter leaves files behind only where it is asked to"


def imports_of(script: Path) -> list[str]:
    """The import statements of a chapter, those in functions and branches too; without Colab's."""
    nodes = ast.walk(ast.parse(script.read_text()))
    found = [ast.unparse(n) for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom))]
    return [line for line in found if "google.colab" not in line]


def test_no_chapter_imports_jupyter(tmp_path):
    lines = sorted({line for script in SCRIPTS for line in imports_of(script)})
    assert len(SCRIPTS) >= 12 and len(lines) > 100
    script = tmp_path / "chapter.py"
    script.write_text("\n".join(lines))
    result = run_without_jupyter(script, tmp_path)
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.mark.parametrize("module", ["IPython", "jupyter_client.manager", "myst_nb"])
def test_the_check_would_notice_jupyter(module, tmp_path):
    script = tmp_path / "chapter.py"
    script.write_text(f"import json\nimport {module}\n")
    result = run_without_jupyter(script, tmp_path)
    assert result.returncode != 0 and "(hidden)" in result.stderr
