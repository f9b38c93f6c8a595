"""Which modules of this repository a module or a chapter imports, read from the source without running it.

Introduced in chapter 1.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("lib", "tests", "book")
NAME = re.compile(rf"\b(?:{'|'.join(PACKAGES)})(?:\.\w+)+")


def module_name(path: Path, package: Path) -> str:
    """The dotted name of a file: lib/cache/__init__.py is lib.cache. `package` is the folder of the top package."""
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(
    tree: ast.Module,
    name: str,
    is_package: bool,
    known: set[str],
    packages: tuple[str, ...] = ("lib",),
) -> set[tuple[str, int]]:
    """(module, line) of every import from `packages`, wherever in the file it stands; relative imports resolved."""
    package = name if is_package else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*anchor, *filter(None, [node.module])])
            # `from lib.cache import blocks` names a module; `from lib.cache.block_manager import BlockManager` a thing in one
            targets = [
                f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names
            ]
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            targets = [str(node.args[0].value)]
        else:
            continue
        found |= {
            (target, node.lineno) for target in targets if target.partition(".")[0] in packages
        }
    return found


def named_modules(tree: ast.Module, known: set[str]) -> set[str]:
    """Modules that a string names: `python -m lib.serving`, a table of lazy imports, a script for another process.

    Docstrings do not count. A package that is named may be run, so its `__main__` counts too.
    """
    docs = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    found = set()
    for node in ast.walk(tree):
        if (
            not isinstance(node, ast.Constant)
            or not isinstance(node.value, str)
            or id(node) in docs
        ):
            continue
        for match in NAME.finditer(node.value):
            parts = match[0].split(".")
            prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
            found |= {name for name in prefixes if name in known and name.count(".")}
        if "import" in node.value:
            try:
                script = ast.parse(textwrap.dedent(node.value))
            except SyntaxError:
                continue
            found |= {name for name, _ in imported_modules(script, "", False, known, PACKAGES)}
    return found | {f"{name}.__main__" for name in found if f"{name}.__main__" in known}


def without_lazy(tree: ast.Module) -> ast.Module:
    """A package's source without what is imported only when it is asked for: see `ImportGraph.closure`."""
    body = [
        node
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Expr, ast.Try, ast.With))
    ]
    return ast.Module(body, type_ignores=[])


def is_lazy(tree: ast.Module) -> bool:
    """Whether a package imports on first use: it has a `__getattr__`."""
    return any(isinstance(n, ast.FunctionDef) and n.name == "__getattr__" for n in tree.body)


@dataclass
class ImportGraph:
    """The modules below `root`'s packages, and what each of them imports."""

    root: Path
    paths: dict[str, Path] = field(init=False)
    _trees: dict[str, ast.Module] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        folders = [self.root / name for name in PACKAGES]
        self.paths = {module_name(p, f): p for f in folders for p in sorted(f.rglob("*.py"))}

    def closure(self, text: str) -> set[str]:
        """All modules that running a source text can import, with the packages that hold them.

        Importing a.b.c runs a and a.b as well. A package with a module-level `__getattr__` imports what it offers
        only when it is asked for it. As the parent of another module, only the imports at its top count: not those for
        the type checker, in functions, or in its table of names. Text that is no Python imports nothing: running it
        will fail.
        """
        try:
            todo = [(module, True) for module in self._imports(ast.parse(text))]
        except SyntaxError:
            return set()
        done: set[tuple[str, bool]] = set()
        while todo:
            module, asked = entry = todo.pop()
            if entry in done:
                continue
            done.add(entry)
            tree, is_package = self._tree(module), self.paths[module].name == "__init__.py"
            if not asked and is_lazy(tree):
                tree = without_lazy(tree)
            todo += [(name, True) for name in self._imports(tree, module, is_package)]
            todo += [(name, False) for name in self._parents(module)]
        return {module for module, _ in done}

    def _imports(self, tree: ast.Module, name: str = "", is_package: bool = False) -> set[str]:
        known = set(self.paths)
        found = {m for m, _ in imported_modules(tree, name, is_package, known, PACKAGES)}
        return (found | named_modules(tree, known)) & known

    def _tree(self, module: str) -> ast.Module:
        if module not in self._trees:
            self._trees[module] = ast.parse(self.paths[module].read_text())
        return self._trees[module]

    def _parents(self, module: str) -> Iterator[str]:
        while "." in module:
            module = module.rpartition(".")[0]
            if module in self.paths:
                yield module
