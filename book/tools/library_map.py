"""The library, room by room: its packages, one line per file, and a drawing of which package imports which.

All of it is read from lib/: the lines are the docstrings' first lines, the arrows are the imports.
"""

from __future__ import annotations

import ast
import html
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from book.tools.diagrams import PALETTE, dark_rules
from lib.bench.records.import_graph import ImportGraph, imported_modules

CHAPTER = re.compile(r"\s*Introduced in chapter (\d+)\.?")
WIDTH, BOX, HEIGHT, GAP = 960, 400, 66, 34  # of the drawing and its boxes
# Puts the engine together from parts that build on it: its imports of the engine's subfolders are no arrows.
COMPOSITION_ROOT = "lib.engine.assemble"
BESIDE = ("bench", "loadtest")  # the right column; the engine's own packages stand in the left one
ONE_BOX = "bench.findings"  # with its packages, one per chapter


@dataclass(frozen=True)
class Package:
    """A folder of lib/. files: (file name, first line of its docstring, chapter that introduces it)."""

    name: str
    doc: str
    files: tuple[tuple[str, str, str], ...]
    imports: frozenset[str]

    @property
    def folder(self) -> str:
        return "lib/" + self.name.replace(".", "/")


def first_line(tree: ast.Module) -> tuple[str, str]:
    """A module docstring's first line without its "Introduced in chapter N.", and the N."""
    doc = ast.get_docstring(tree) or ""
    chapter = CHAPTER.search(doc)
    return CHAPTER.sub("", doc.splitlines()[0] if doc else ""), chapter[1] if chapter else ""


def packages(root: Path) -> list[Package]:
    """The packages of lib/, each one before those that it imports; the engine's first."""
    graph, lib = ImportGraph(root), root / "lib"
    folders: dict[str, list[tuple[str, Path]]] = {}
    for module, path in graph.paths.items():
        if lib in path.parents and path.parent != lib:
            name = ".".join(path.parent.relative_to(lib).parts)
            folders.setdefault(name, []).append((module, path))
    found = {}
    for name, modules in folders.items():
        doc, files, imports = "", [], set()
        for module, path in modules:
            tree = ast.parse(path.read_text())
            line, chapter = first_line(tree)
            if path.name == "__init__.py":
                doc = line
            else:
                files.append((path.name, line, chapter))
            known = set(graph.paths)
            for target, _ in imported_modules(tree, module, path.name == "__init__.py", known):
                folder = graph.paths[target].parent if target in graph.paths else lib
                if module == COMPOSITION_ROOT and path.parent in folder.parents:
                    continue
                imports.add(".".join(folder.relative_to(lib).parts))
        found[name] = Package(name, doc, tuple(files), frozenset(imports & set(folders) - {name}))
    return in_order(found.values())


def in_order(found: Iterable[Package]) -> list[Package]:
    """Each package before those that it imports; the engine's first. ValueError where packages import each other."""
    by_name = {package.name: package for package in found}
    depth: dict[str, int] = {}

    def depth_of(name: str, above: tuple[str, ...] = ()) -> int:
        if name in above:
            raise ValueError(f"packages import each other: {' → '.join([*above, name])}")
        if name not in depth:
            below = (depth_of(other, (*above, name)) for other in by_name[name].imports)
            depth[name] = 1 + max(below, default=0)
        return depth[name]

    return sorted(by_name.values(), key=lambda p: (is_beside(p), -depth_of(p.name), p.name))


def drawn(found: list[Package]) -> list[Package]:
    """The packages of the drawing: those inside ONE_BOX are a part of it."""

    def box(name: str) -> str:
        return ONE_BOX if name.startswith(f"{ONE_BOX}.") else name

    merged: dict[str, frozenset[str]] = {}
    for package in found:
        imports = {box(other) for other in package.imports} - {box(package.name)}
        merged[box(package.name)] = merged.get(box(package.name), frozenset()) | imports
    return in_order(replace(p, imports=merged[p.name]) for p in found if p.name in merged)


def is_beside(package: Package) -> bool:
    return package.name.partition(".")[0] in BESIDE


def arrows(found: list[Package]) -> list[tuple[str, str]]:
    """Which package imports which, without what follows from other arrows: A → C where A → B and B → C."""
    imports = {package.name: package.imports for package in found}

    def reach(name: str) -> set[str]:
        return set().union(*({other} | reach(other) for other in imports[name]))

    return [
        (name, other)
        for name in imports
        for other in sorted(imports[name])
        if not any(other in reach(between) for between in imports[name] - {other})
    ]


def markdown(found: list[Package], link: str) -> str:
    """One paragraph per package, one line per file. `link` comes before a file's path, such as "../" or a URL."""
    lines = []
    for package in found:
        lines += [f"**`{package.folder}`** {package.doc}", ""]
        for name, doc, chapter in package.files:
            since = f" *Chapter {chapter}.*" if chapter else ""
            lines.append(f"- [`{name}`]({link}{package.folder}/{name}): {doc}{since}")
        lines += [""] if package.files else []
    return "\n".join(lines)


def svg(found: list[Package]) -> str:
    """The drawing, in the palette's light colours; its style sheet turns it dark where it stands alone, as on GitHub."""
    ink, grey, blue, pale, orange, cream = (
        list(PALETTE)[i] for i in (0, 1, 6, 5, 8, 7)
    )  # fmt: skip
    columns = [[p for p in found if not is_beside(p)], [p for p in found if is_beside(p)]]
    at = {
        package.name: (30 + i * (WIDTH - BOX - 60 - 40), 20 + row * (HEIGHT + GAP), i)
        for i, column in enumerate(columns)
        for row, package in enumerate(column)
    }
    height = 20 + max(map(len, columns)) * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        "font-family=\"system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\">",
        f"<style>@media (prefers-color-scheme: dark) {{\n{dark_rules()}}}</style>",
        '<defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0.8 L9.4 5 L0 9.2 Z" fill="{grey}"/></marker></defs>',
    ]
    for start, end in arrows(found):
        parts.append(
            f'<path d="{_line(at[start], at[end])}" fill="none" stroke="{grey}" stroke-width="2" marker-end="url(#a)"/>'
        )
    for package in found:
        x, y, column = at[package.name]
        fill, line = ((pale, blue), (cream, orange))[column]
        parts.append(
            f'<rect x="{x}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="9" fill="{fill}" stroke="{line}" stroke-width="1.8"/>'
        )
        parts.append(
            f'<text x="{x + 14}" y="{y + 22}" font-size="16" font-weight="600" fill="{ink}">{package.name}</text>'
        )
        doc = textwrap.wrap(package.doc.replace("`", ""), 52, max_lines=2, placeholder=" …")
        for row, text in enumerate(doc):
            parts.append(
                f'<text x="{x + 14}" y="{y + 41 + 16 * row}" font-size="12.5" fill="{ink}">{html.escape(text)}</text>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _line(start: tuple[int, int, int], end: tuple[int, int, int]) -> str:
    """The path of an arrow: down to the next box, around boxes between on the outer side, across between columns."""
    (x, y, column), (x2, y2, column2) = start, end
    middle = HEIGHT // 2
    if column != column2:
        from_x, to_x = (x, x2 + BOX) if column else (x + BOX, x2)
        return f"M{from_x} {y + middle} L{to_x} {y2 + middle}"
    if abs(y2 - y) == HEIGHT + GAP:
        return f"M{x + BOX // 2} {y + HEIGHT} V{y2}"
    side, out = (x + BOX, 26) if column else (x, -26)
    return f"M{side} {y + middle} h{out} V{y2 + middle} h{-out}"
