"""What a chapter's outputs depend on, as one digest: the chapter runs again when the digest changes.

Inputs are the code cells, the modules that they import (also indirectly) and the data files of those modules' packages,
the recorded runs and published figures that are read, and what holds for all chapters: installed versions, machine, scale.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
from pathlib import Path

import nbformat

from lib.bench.records.import_graph import ImportGraph


def code_of(notebook: Path) -> str:
    """All code cells as one text."""
    cells = nbformat.read(notebook, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def files_below(folder: Path, *suffixes: str) -> list[Path]:
    """Files under a folder, in order; caches and hidden files left out."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and "__pycache__" not in path.parts
        and not path.name.startswith(".")
        and (not suffixes or path.suffix in suffixes)
    ]


def digest(root: Path, paths: list[Path], *extra: str) -> str:
    """A hash of the files' names and contents, and of the extra texts."""
    total = hashlib.sha256("\0".join(extra).encode())
    for path in sorted(set(paths)):
        total.update(f"\0{path.relative_to(root)}\0".encode() + path.read_bytes())
    return total.hexdigest()


def surroundings(machine: dict[str, str]) -> list[str]:
    """What every chapter depends on: the facts of the machine and the installed versions."""
    installed = {f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions()}
    return [*machine.values(), *sorted(installed)]


def data_files(graph: ImportGraph, modules: set[str]) -> list[Path]:
    """Files of the modules' packages that are no Python, such as lib/serving/static. A package's own packages are others."""
    packages = {path.parent for path in graph.paths.values() if path.name == "__init__.py"}
    found = []
    for folder in {graph.paths[module].parent for module in modules} & packages:
        for path in files_below(folder):
            owner = next(parent for parent in path.parents if parent in packages)
            if path.suffix != ".py" and owner == folder and graph.root / "lib" in path.parents:
                found.append(path)
    return found


def measurement_files(root: Path, chapter: str, code: str, library: list[Path]) -> list[Path]:
    """Records of the chapter on all hardware, and the other files under book/measurements that it reads.

    Those are found by their name: a string in the chapter's code, or in a module that it imports, that is the file's
    name with or without `.json`.
    """
    folder = root / "book" / "measurements"
    named = set()
    for text in (code, *(path.read_text() for path in library)):
        try:
            nodes = list(ast.walk(ast.parse(text)))
        except SyntaxError:  # running it will say so
            continue
        named |= {
            n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)
        }
    return [
        path
        for path in sorted(folder.glob("*/*.json"))
        if path.stem == chapter or path.stem in named or path.name in named
    ]


def chapter_digests(root: Path, machine: dict[str, str]) -> dict[str, str]:
    """The digest of each chapter's inputs, by its name (`01_forward_pass`), in the order of the book."""
    graph, common = ImportGraph(root), surroundings(machine)
    result = {}
    for notebook in sorted((root / "chapters").glob("[0-9]*.ipynb")):
        code = code_of(notebook)
        modules = graph.closure(code)
        library = [graph.paths[module] for module in modules]
        measured = measurement_files(root, notebook.stem, code, library)
        paths = [*library, *data_files(graph, modules), *measured]
        result[notebook.stem] = digest(root, paths, code, *common)
    return result
