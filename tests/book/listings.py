"""The code that a chapter shows: its cells, and the pieces of lib/ that show_source and show_excerpt print."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext

from lib.bench.notebook.excerpt import excerpt
from lib.bench.notebook.glue import source

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "chapters").glob("[0-9]*.py"))
REMOVED = {"remove-input", "remove-cell"}
FOLDED = {"hide-input", "hide-cell"}


def all_cells(chapter: Path, without: frozenset[str] = frozenset()) -> list[str]:
    """The source of each code cell that the page holds, folded ones too; `without`: tags of cells to leave out."""
    return [
        cell.source
        for cell in jupytext.read(chapter).cells
        if cell.cell_type == "code" and not (REMOVED | without) & set(cell.metadata.get("tags", []))
    ]


def visible_cells(chapter: Path) -> list[str]:
    """The source of each code cell that the page shows without a click."""
    return all_cells(chapter, frozenset(FOLDED))


@dataclass(frozen=True)
class Listing:
    """call: as the chapter writes it. file: relative to the repository. text: what the page shows."""

    call: str
    file: str
    text: str


def shown_listings(chapter: Path) -> Iterator[Listing]:
    """Each call of show_source or show_excerpt. One whose module cannot be imported here (no Triton) is left out."""
    tree = ast.parse(chapter.read_text())
    names = _imported(tree)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        show = getattr(call.func, "id", "")
        if show not in ("show_source", "show_excerpt"):
            continue
        try:
            what = eval(compile(ast.Expression(call.args[0]), "<chapter>", "eval"), names)
        except (NameError, AttributeError):
            continue
        rest = [ast.literal_eval(argument) for argument in call.args[1:]]
        text = (source if show == "show_source" else excerpt)(what, *rest)
        file = Path(inspect.getsourcefile(inspect.unwrap(what))).relative_to(ROOT).as_posix()
        yield Listing(ast.unparse(call), file, text)


def _imported(tree: ast.Module) -> dict[str, Any]:
    """What the chapter imports from lib, by the names that it uses."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("lib"):
            continue
        for alias in node.names:
            try:
                module = importlib.import_module(node.module)
                value = getattr(module, alias.name, None)
                if value is None:
                    value = importlib.import_module(f"{node.module}.{alias.name}")
            except ImportError:
                continue
            found[alias.asname or alias.name] = value
    return found
