"""A digest of the code that a chapter runs: its record is up to date while the digest stays the same.

Introduced in chapter 1.
"""

import ast
import functools
import hashlib
from pathlib import Path

from lib.bench.paths import repository
from lib.bench.records.import_graph import ImportGraph


def source_digest(script: Path) -> str:
    """16 hexadecimal digits for the script and the modules of `lib/` that it imports, also indirectly.

    Only what runs counts: a change of comments, docstrings, formatting or of a chapter's prose
    keeps the digest. With or without git, on a clean tree or a dirty one.
    """
    text = script.read_text() if script.is_file() else ""
    graph = _graph(repository())
    modules = sorted(m for m in graph.closure(text) if m.partition(".")[0] == "lib")
    digest = hashlib.sha256(script.name.encode() + b"\0" + code(text).encode())
    for module in modules:
        digest.update(f"\0{module}\0{code(graph.paths[module].read_text())}".encode())
    return digest.hexdigest()[:16]


def code(text: str) -> str:
    """The source text without comments, docstrings and formatting; the text itself if it is no Python."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return text
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return ast.dump(tree)


@functools.cache
def _graph(root: Path) -> ImportGraph:
    return ImportGraph(root)
