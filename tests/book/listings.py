"""The code that a chapter shows: its visible cells, and the pieces of lib/ that show_source and show_excerpt print."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext

from lib.bench.notebook.excerpt import excerpt
from lib.bench.notebook.glue import source

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "chapters").glob("[0-9]*.py"))
HIDDEN = {"hide-input", "hide-cell", "remove-input", "remove-cell"}


def visible_cells(chapter: Path) -> list[str]:
    """The source of each code cell that the page shows without a click."""
    cells = jupytext.read(chapter).cells
    return [
        cell.source
        for cell in cells
        if cell.cell_type == "code" and not HIDDEN & set(cell.metadata.get("tags", []))
    ]


def shown_listings(chapter: Path) -> Iterator[tuple[str, str]]:
    """Each call of show_source or show_excerpt as written in the chapter, with the text that it shows.

    A listing whose module cannot be imported here (Triton where there is none) is left out.
    """
    tree = ast.parse(chapter.read_text())
    names = _imported(tree)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        shown = getattr(call.func, "id", "")
        if shown not in ("show_source", "show_excerpt"):
            continue
        try:
            what = eval(compile(ast.Expression(call.args[0]), "<chapter>", "eval"), names)
        except (NameError, AttributeError):
            continue
        rest = [ast.literal_eval(argument) for argument in call.args[1:]]
        yield ast.unparse(call), (source if shown == "show_source" else excerpt)(what, *rest)


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
