"""A chapter's code mentions every name that its text shows: a sentence that nothing glues would show only in a build."""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "chapters").glob("[0-9]*.py"))
SHOWN = re.compile(r"\{glue:text\}`([^`:]+)")
FINDINGS = "lib.bench.findings"


def imported(tree: ast.AST) -> dict[str, Any]:
    """What the chapter imports from the findings, by the name that it has in the chapter."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(FINDINGS):
            for alias in node.names:
                try:
                    value = importlib.import_module(f"{node.module}.{alias.name}")
                except ModuleNotFoundError:
                    value = getattr(importlib.import_module(node.module), alias.name)
                found[alias.asname or alias.name] = value
    return found


def value_of(node: ast.AST, names: dict[str, Any]) -> Any:
    """What a name, or an attribute of a module, stands for; None for anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        module = value_of(node.value, names)
        return getattr(module, node.attr, None) if isinstance(module, ModuleType) else None
    return None


def functions_in(tree: ast.AST, names: dict[str, Any]) -> Iterator[FunctionType]:
    """Functions of the findings to which the code refers."""
    for node in ast.walk(tree):
        value = value_of(node, names)
        if isinstance(value, FunctionType) and value.__module__.startswith(FINDINGS):
            yield value


def words(tree: ast.AST) -> set[str]:
    """All strings in the code."""
    return {
        n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    }


def glued_names(source: str) -> set[str]:
    """The strings of the code and of all findings that it reaches; a name that is glued is among them."""
    tree = ast.parse(source)
    found, seen = words(tree), set()
    waiting = list(functions_in(tree, imported(tree)))
    while waiting:
        function = waiting.pop()
        if function in seen:
            continue
        seen.add(function)
        inner = ast.parse(textwrap.dedent(inspect.getsource(function)))
        found |= words(inner)
        waiting += functions_in(inner, function.__globals__)
    return found


@pytest.mark.parametrize("chapter", CHAPTERS, ids=[path.stem for path in CHAPTERS])
def test_each_name_in_the_text_is_glued(chapter):
    source = chapter.read_text(encoding="utf-8")
    missing = set(SHOWN.findall(source)) - glued_names(source)
    assert not missing, f"{chapter.name}: nothing glues {sorted(missing)}"


def test_a_sentence_whose_function_is_not_called_is_missing():
    source = (ROOT / "chapters" / "08_launch_overhead.py").read_text(encoding="utf-8")
    without = re.sub(r"^.*words\.peer_limit\(.*$", "", source, flags=re.MULTILINE)
    assert without != source
    assert set(SHOWN.findall(without)) - glued_names(without) == {"peer_limit_finding"}
