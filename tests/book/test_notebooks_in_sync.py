"""Each chapter is one text in two files: the script that is edited and the notebook that Colab opens."""

import ast
import json
import re
from pathlib import Path

import jupytext
import pytest

from book.tools import notebooks

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "chapters").glob("[0-9]*.py"))
NOTEBOOKS = sorted((ROOT / "chapters").glob("[0-9]*.ipynb"))
names = [path.stem for path in SCRIPTS]


def cells(notebook) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_every_script_has_a_notebook_and_every_notebook_a_script():
    assert [p.stem for p in SCRIPTS] == [p.stem for p in NOTEBOOKS]


@pytest.mark.parametrize("script", SCRIPTS, ids=names)
def test_the_notebook_equals_its_script(script):
    pair = jupytext.read(script.with_suffix(".ipynb"))
    assert cells(pair) == cells(jupytext.read(script, fmt="py:percent")), "run `make notebooks`"


@pytest.mark.parametrize("script", SCRIPTS, ids=names)
def test_the_notebook_has_no_outputs_and_the_common_kernel(script):
    notebook = json.loads(script.with_suffix(".ipynb").read_text())
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.parametrize("script", SCRIPTS, ids=names)
def test_the_script_is_plain_python(script):
    ast.parse(script.read_text())  # a line of magic would be a syntax error
    for cell in jupytext.read(script, fmt="py:percent").cells:
        if cell.cell_type == "code":
            # jupytext would comment a magic out on its way into the script
            assert not re.search(r"^\s*(?:#\s*)?(?:%{1,2}[a-z]|![a-z])", cell.source, re.M), (
                cell.source
            )


def test_everything_generated_is_up_to_date():
    stale = [
        str(path.relative_to(ROOT))
        for path, text in notebooks.generated()
        if path.read_text() != text
    ]
    assert stale == [], "run `make notebooks`"


@pytest.mark.parametrize("script", SCRIPTS, ids=names)
def test_the_colab_cell_names_the_repository_of_the_config(script):
    code = [
        cell.source
        for cell in jupytext.read(script, fmt="py:percent").cells
        if cell.cell_type == "code"
    ]
    assert f'"{notebooks.repository_url()}"' in code[0] and "google.colab" in code[0]


SCRIPT = "# %% [markdown]\n# # Title\n\n# %%\nx = 1\n"


def test_the_colab_cell_is_put_in_once_and_replaced_after_that(monkeypatch):
    once = notebooks.with_setup_cell(SCRIPT)
    assert notebooks.repository_url() in once and once.endswith("# %%\nx = 1\n")
    assert notebooks.with_setup_cell(once) == once
    monkeypatch.setattr(notebooks, "repository_url", lambda: "https://example.org/a/other-name")
    moved = notebooks.with_setup_cell(once)
    assert '"https://example.org/a/other-name"' in moved and "/content/other-name" in moved
    assert moved.count("google.colab") == once.count("google.colab")
    page = "git clone https://example.org/old/x\ncd x\n"
    assert notebooks.with_url(page) == "git clone https://example.org/a/other-name\ncd other-name\n"


def test_the_colab_cell_does_nothing_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(notebooks.setup_cell(), "cell", "exec"), {})
    assert list(tmp_path.iterdir()) == [] and Path.cwd() == tmp_path


def test_the_same_script_gives_the_same_notebook():
    assert notebooks.to_notebook(SCRIPT) == notebooks.to_notebook(SCRIPT)
    ids = [cell["id"] for cell in json.loads(notebooks.to_notebook(SCRIPT * 2))["cells"]]
    assert len(set(ids)) == len(ids) == 4


@pytest.mark.parametrize("script", SCRIPTS, ids=names)
def test_no_cell_shows_what_a_call_happens_to_return(script):
    """The value of a cell's last expression is printed on the page: a Series or a gate's answer is no output."""
    for cell in jupytext.read(script, fmt="py:percent").cells:
        hidden = {"remove-cell", "remove-output"} & set(cell.metadata.get("tags", []))
        body = ast.parse(cell.source).body if cell.cell_type == "code" and not hidden else []
        if body and isinstance(body[-1], ast.Expr):
            shown = ast.unparse(body[-1])
            assert not re.match(r"\w*(record\.add|gate\.\w+)\(", shown), shown
