"""The book reads without a network: pages fetch nothing from elsewhere, and math still renders."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from book.tools.check_offline import remote_loads

ROOT = Path(__file__).resolve().parents[2]

PAGE = """\
# %% [markdown]
# # A page
#
# Inline $x^2$, and {eq}`eq-one` from {cite}`vaswani2017attention`.
#
# ```{math}
# :label: eq-one
# y = \\\\sum_i x_i
# ```
#
# ```{diagram} ../book/images/request_path.svg
# :name: fig-path
# :alt: A request and its way
#
# The path.
# ```
#
# :::{exercise} Predict
# :label: ex-one
#
# What does it print?
# :::
#
# ````{solution} ex-one
# :class: dropdown
# ```python
# print(1)
# ```
# ````
#
# ::::{tab-set}
# :::{tab-item} One
# first
# :::
# :::{tab-item} Two
# second
# :::
# ::::

# %%
import sys
import time
print("token", end="", flush=True)
time.sleep(0.3)
print(" by", end="", flush=True)
time.sleep(0.3)
print(" token")
print("to stdout")
print("to stderr", file=sys.stderr)

# %%
import matplotlib.pyplot as plt
_ = plt.plot([1, 2])
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A book of one page and the bibliography, with this book's own configuration."""
    from book.tools.notebooks import to_notebook

    folder = tmp_path_factory.mktemp("book")
    left_out = shutil.ignore_patterns("__pycache__", "measurements", "*.md")
    shutil.copytree(ROOT / "book", folder / "book", ignore=left_out)
    shutil.copy(ROOT / "_config.yml", folder)
    (folder / "book" / "bibliography.md").write_text(
        (ROOT / "book" / "bibliography.md").read_text()
    )
    (folder / "chapters").mkdir()
    (folder / "chapters" / "page.py").write_text(
        "raise SystemExit('the notebook is the source, not this script')\n"
    )
    (folder / "chapters" / "page.ipynb").write_text(to_notebook(PAGE))
    toc = {
        "format": "jb-book",
        "root": "chapters/page",
        "chapters": [{"file": "book/bibliography"}],
    }
    (folder / "_toc.yml").write_text(yaml.safe_dump(toc))
    result = subprocess.run(
        [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", ".", "-W", "--keep-going"],
        cwd=folder, env={**os.environ, "JUPYTER_PREFER_ENV_PATH": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder / "_build" / "html"


@pytest.mark.slow
def test_no_page_loads_anything_from_another_host(built):
    assert remote_loads(built) == []


@pytest.mark.slow
def test_math_comes_from_the_book(built):
    html = (built / "chapters" / "page.html").read_text()
    assert "_static/mathjax/tex-chtml.js" in html
    assert (built / "_static" / "mathjax" / "tex-chtml.js").stat().st_size > 100_000
    assert list((built / "_static" / "mathjax").rglob("*.woff"))


@pytest.mark.slow
def test_the_page_is_the_executed_notebook(built):
    html = (built / "chapters" / "page.html").read_text()
    assert "token by token\nto stdout\n" in html, "a stream is one text"
    assert html.count("to stderr") == 1, (
        "stderr is progress bars: the source shows, the output does not"
    )
    assert 'class="diagram"><svg' in html, (
        "a diagram is a part of the page, so it follows its theme"
    )
    assert "_static/diagrams.css" in html and 'aria-label="A request and its way"' in html
    assert "Fig. 1" in html and "The path." in html, "numbered, with its caption"
    assert "https://colab.research.google.com/github/" in html


@pytest.mark.browser
@pytest.mark.slow
def test_a_browser_without_a_network_renders_the_math(built, tmp_path):
    chromium = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if chromium is None:
        pytest.skip("no chromium here")
    result = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
         f"--user-data-dir={tmp_path}", "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=20000",
         "--dump-dom", (built / "chapters" / "page.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.stdout.count("<mjx-container") >= 2, result.stdout[-500:] + result.stderr[-2000:]


REMOTE = {
    "script": '<script src="https://cdn.example.org/a.js"></script>',
    "script without a scheme": '<script src="//cdn.example.org/a.js"></script>',
    "module": "<script type=module>import x from 'https://cdn.example.org/a.js'</script>",
    "style sheet": '<link rel="stylesheet" href="https://fonts.example.org/css">',
    "preload": '<link rel="preload" as="font" href="https://fonts.example.org/f.woff2">',
    "import in a style": "<style>@import url('https://fonts.example.org/css');</style>",
    "style attribute": '<p style="background: url(https://example.org/a.png)">x</p>',
    "image": '<img src="https://img.example.org/badge.svg">',
    "image set": '<img src="a.png" srcset="a.png 1x, https://img.example.org/b.png 2x">',
    "frame": '<iframe src="http://example.org/"></iframe>',
}
LOCAL = (
    '<a href="https://example.org">x</a><script src="../_static/a.js"></script><img src="data:image/png;base64,AA==">'
    '<link rel="canonical" href="https://example.org/page"><svg xmlns="http://www.w3.org/2000/svg"></svg>'
    '<script>const home = "https://example.org"</script>'
)


@pytest.mark.parametrize("kind", REMOTE)
def test_the_check_finds(tmp_path, kind):
    (tmp_path / "page.html").write_text(LOCAL)
    assert remote_loads(tmp_path) == []
    (tmp_path / "page.html").write_text(f"<body>{LOCAL}{REMOTE[kind]}</body>")
    (found,) = remote_loads(tmp_path)
    assert found.startswith("page.html: ") and "example.org" in found


def test_the_check_reads_style_sheets_and_wants_pages(tmp_path):
    with pytest.raises(FileNotFoundError):
        remote_loads(tmp_path)
    (tmp_path / "page.html").write_text(LOCAL)
    (tmp_path / "a.css").write_text("@font-face { src: url(https://fonts.example.org/f.woff2) }")
    assert remote_loads(tmp_path) == ["a.css: https://fonts.example.org/f.woff2"]


def test_the_reference_measurements_are_data():
    reference = json.loads(
        (ROOT / "book" / "measurements" / "reference" / "seed_results.json").read_text()
    )
    assert reference["source"] and reference["setup"]["gpu"]
