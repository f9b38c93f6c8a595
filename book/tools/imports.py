"""Which modules of this repository a module or a chapter imports, read from the source without running it."""

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


@dataclass
class ImportGraph:
    """The modules below `root`'s packages, and what each of them imports."""

    root: Path
    paths: dict[str, Path] = field(init=False)
    _imports: dict[str, set[str]] = field(init=False, default_factory=dict)
    _lazy: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        folders = [self.root / name for name in PACKAGES]
        self.paths = {module_name(p, f): p for f in folders for p in sorted(f.rglob("*.py"))}

    def imports_of(self, text: str, name: str = "", is_package: bool = False) -> set[str]:
        """Modules that a source text imports or names. Text that is no Python imports nothing: running it will fail."""
        try:
            tree = ast.parse(text)
        except SyntaxError:
            return set()
        known = set(self.paths)
        found = {m for m, _ in imported_modules(tree, name, is_package, known, PACKAGES)}
        if is_package and any(
            isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body
        ):
            self._lazy.add(name)
        return (found | named_modules(tree, known)) & known

    def closure(self, text: str) -> set[str]:
        """All modules that running a source text can import, with the packages that hold them.

        Importing a.b.c runs a and a.b as well. A package with a module-level `__getattr__` imports what it offers
        only when it is asked for it, so as the parent of another module it counts without its own imports.
        """
        found: set[str] = set()
        followed: set[str] = set()
        todo = list(self.imports_of(text))
        while todo:
            module = todo.pop()
            if module in followed:
                continue
            followed.add(module)
            found.add(module)
            todo += self._direct(module)
            for parent in self._parents(module):
                found.add(parent)
                self._direct(parent)  # finds out whether it is lazy
                if parent not in self._lazy:
                    todo.append(parent)
        return found

    def _direct(self, module: str) -> set[str]:
        if module not in self._imports:
            path = self.paths[module]
            is_package = path.name == "__init__.py"
            self._imports[module] = self.imports_of(path.read_text(), module, is_package)
        return self._imports[module]

    def _parents(self, module: str) -> Iterator[str]:
        while "." in module:
            module = module.rpartition(".")[0]
            if module in self.paths:
                yield module
