"""The engine is cumulative: a module of lib/ imports only modules of its own chapter or of an earlier one."""

import ast
import re
from pathlib import Path

import pytest

from lib.bench.records.import_graph import imported_modules, module_name

LIB = Path(__file__).resolve().parents[1] / "lib"
# The two places that may know everything: the package's front door, and where the parts are put together.
EXEMPT = {"lib", "lib.engine.assemble"}
# A package imports itself and what stands before it. The engine does not know how it is measured or loaded.
PACKAGES = ("core", "models", "cache", "attention", "engine", "serving")
BESIDE = ("bench", "bench.measure", "bench.fleet_simulator", "bench.records", "bench.notebook", "bench.findings", "bench.peers",
          "loadtest")  # fmt: skip
CHAPTER = re.compile(r"Introduced in chapter (\d+)\b")


def violations(lib: Path) -> list[str]:
    """One line for each module without a chapter, and for each import that the layering forbids."""
    paths = {module_name(path, lib): path for path in sorted(lib.rglob("*.py"))}
    trees = {name: ast.parse(path.read_text(), filename=str(path)) for name, path in paths.items()}
    chapters, problems = {}, []
    for name, tree in trees.items():
        match = CHAPTER.search(ast.get_docstring(tree) or "")
        if match:
            chapters[name] = int(match[1])
        elif name not in EXEMPT:
            problems.append(f"{name}: its docstring has no line `Introduced in chapter N.`")
    for name, tree in trees.items():
        if name in EXEMPT or name not in chapters:
            continue
        is_package = paths[name].name == "__init__.py"
        for target, line in sorted(imported_modules(tree, name, is_package, set(paths))):
            if target not in paths:
                problems.append(f"{name}:{line}: imports {target}, which does not exist")
            elif target in EXEMPT and target == "lib":
                problems.append(
                    f"{name}:{line}: imports the package lib itself, which imports everything"
                )
            elif chapters.get(target, 0) > chapters[name]:
                later = f"{target} of chapter {chapters[target]}"
                problems.append(f"{name}:{line}: chapter {chapters[name]} imports {later}")
    return problems


def package_of(module: str) -> str:
    """The longest known package that holds a module: bench.measure for lib.bench.measure.timing."""
    name = module.removeprefix("lib.")
    return max(
        (p for p in (*PACKAGES, *BESIDE) if name == p or name.startswith(p + ".")),
        key=len,
        default="",
    )


def upward_imports(lib: Path) -> list[str]:
    """One line for each import from a package that stands higher, and for each package without a place in the order."""
    order = [*PACKAGES, *BESIDE]
    problems = []
    for path in sorted(lib.rglob("*.py")):
        name = module_name(path, lib)
        if name == "lib":
            continue
        own = package_of(name)
        if not own:
            problems.append(f"{name}: its package has no place in the order {order}")
            continue
        known = {module_name(p, lib) for p in lib.rglob("*.py")}
        tree = ast.parse(path.read_text(), filename=str(path))
        for target, line in sorted(imported_modules(tree, name, path.name == "__init__.py", known)):
            other = package_of(target)
            if other and order.index(other) > order.index(own):
                problems.append(f"{name}:{line}: {own} imports {target}, which stands above it")
    return problems


def test_packages_import_downwards_only():
    assert upward_imports(LIB) == []


@pytest.mark.parametrize("own, other", [("core", "models"), ("cache", "engine"), ("engine", "bench"), ("bench.measure", "bench.notebook"),
                                        ("bench", "loadtest")])  # fmt: skip
def test_a_planted_upward_import_is_reported(tmp_path, own, other):
    lib = tmp_path / "lib"
    for package in (*PACKAGES, *BESIDE):
        folder = lib / package.replace(".", "/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text("")
        (folder / "thing.py").write_text("")
    assert upward_imports(lib) == []
    (lib / own.replace(".", "/") / "thing.py").write_text(
        f"def late():\n    from lib.{other}.thing import x\n"
    )
    (problem,) = upward_imports(lib)
    assert problem.startswith(f"lib.{own}.thing:2: {own} imports lib.{other}.thing")


def test_a_package_without_a_place_is_reported(tmp_path):
    (tmp_path / "lib" / "new").mkdir(parents=True)
    (tmp_path / "lib" / "new" / "thing.py").write_text("")
    (problem,) = upward_imports(tmp_path / "lib")
    assert problem.startswith("lib.new.thing: its package has no place")


def test_modules_import_only_earlier_chapters():
    assert violations(LIB) == []


def test_there_is_something_to_check():
    assert len(list(LIB.rglob("*.py"))) > 10


PLANTS = {
    "at the top": ("from lib.later import thing\n", "imports lib.later of chapter 4"),
    "inside a function": ("def f():\n    import lib.later\n", "imports lib.later of chapter 4"),
    "as a relative import": ("from .later import thing\n", "imports lib.later of chapter 4"),
    "as a module of its package": ("from lib import later\n", "imports lib.later of chapter 4"),
    "through importlib": (
        "import importlib\nimportlib.import_module('lib.later')\n",
        "imports lib.later of chapter 4",
    ),
    "through the front door": ("from lib import LLM\n", "imports the package lib itself"),
    "of a module that is gone": ("import lib.gone\n", "which does not exist"),
}


@pytest.mark.parametrize("where", PLANTS)
def test_a_planted_violation_is_reported(tmp_path, where):
    code, message = PLANTS[where]
    lib = tmp_path / "lib"
    lib.mkdir()
    (lib / "__init__.py").write_text("from lib.later import thing\n")
    (lib / "later.py").write_text('"""Introduced in chapter 4."""\nimport lib.early\nthing = 1\n')
    (lib / "early.py").write_text('"""Introduced in chapter 2."""\n')
    assert violations(lib) == []
    (lib / "early.py").write_text(f'"""Introduced in chapter 2."""\n{code}')
    (problem,) = violations(lib)
    assert problem.startswith("lib.early:") and message in problem


def test_a_module_without_a_chapter_is_reported(tmp_path):
    lib = tmp_path / "lib"
    lib.mkdir()
    (lib / "new.py").write_text('"""Does something."""\n')
    assert violations(lib) == ["lib.new: its docstring has no line `Introduced in chapter N.`"]
