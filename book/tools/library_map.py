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
from itertools import permutations
from pathlib import Path

from book.tools.diagrams import PALETTE, dark_rules
from lib.bench.records.import_graph import ImportGraph, imported_modules

CHAPTER = re.compile(r"\s*Introduced in chapter (\d+)\.?")
WIDTH, COLUMNS, BOX, HEIGHT = 960, 3, 276, 86  # of the drawing and its boxes
MARGIN, TOP, GAP, TRACK = 20, 16, 46, 12  # around the boxes, between columns, between lines
# Puts the engine together from parts that build on it: its imports of the engine's subfolders are no arrows.
COMPOSITION_ROOT = "lib.engine.assemble"
BESIDE = ("bench", "loadtest")  # drawn in another colour than the engine and the server
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
    """The packages of lib/, each one before those that it imports; the engine's first.

    Those of ONE_BOX follow it in the order of their chapters.
    """
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
    ordered = in_order(found.values())
    inside = [package for package in ordered if package.name.startswith(f"{ONE_BOX}.")]
    ordered = [package for package in ordered if package not in inside]
    after = 1 + next((i for i, p in enumerate(ordered) if p.name == ONE_BOX), len(ordered))
    return [*ordered[:after], *sorted(inside, key=by_chapter), *ordered[after:]]


def by_chapter(package: Package) -> tuple[int, str]:
    """The chapter that a package of findings is about, by its own words; those about several come last."""
    chapter = re.search(r"\bof chapter (\d+)", package.doc)
    return int(chapter[1]) if chapter else 99, package.name


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


def markdown(found: list[Package], link: str, anchors: bool = False) -> str:
    """One paragraph per package, one line per file. `link` comes before a file's path, such as "../" or a URL.

    anchors: gives each line the name that `anchor` returns, in MyST's notation.
    """
    lines = []
    for package in found:
        lines += [f"**`{package.folder}`** {package.doc}", ""]
        for name, doc, chapter in package.files:
            since = f" *Chapter\N{NO-BREAK SPACE}{chapter}.*" if chapter else ""
            path = f"{package.folder}/{name}"
            title = f"[`{name}`]({link}{path})"
            title = f"[{title}]{{#{anchor(path)}}}" if anchors else title
            lines.append(f"- {title}: {doc}{since}")
        lines += [""] if package.files else []
    return "\n".join(lines)


def anchor(path: str) -> str:
    """The name of a file's line on the library's page: lib/cache/kv_cache.py → file-cache-kv-cache."""
    return re.sub(r"[/_]+", "-", "file-" + path.removeprefix("lib/").removesuffix(".py"))


def rows(found: list[Package]) -> list[list[str]]:
    """The drawing's rows, the top one first: at most COLUMNS packages in each, all above those that they import.

    A package stands as low as that allows; of those of one depth, the one with most packages above it comes first.
    """
    imports = {package.name: package.imports for package in found}
    by = {name: [other for other in imports if name in imports[other]] for name in imports}

    def reach(name: str, to: dict) -> int:
        return 1 + max((reach(other, to) for other in to[name]), default=0)

    placed: dict[str, int] = {}
    levels: list[list[str]] = []
    for name in sorted(imports, key=lambda n: (reach(n, imports), -reach(n, by), n)):
        level = 1 + max((placed[other] for other in imports[name]), default=-1)
        while level < len(levels) and len(levels[level]) == COLUMNS:
            level += 1
        if level == len(levels):
            levels.append([])
        levels[level].append(name)
        placed[name] = level
    return levels[::-1]


def cells(levels: list[list[str]], lines: list[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """Row and column of each package: the columns that keep the arrows short, found row by row."""
    at = {n: (row, column) for row, names in enumerate(levels) for column, n in enumerate(names)}

    def cost(cells: dict[str, tuple[int, int]]) -> float:
        taken, total = set(cells.values()), 0.0
        for start, end in lines:
            (row, column), (row2, column2) = cells[start], cells[end]
            total += abs(column - column2)
            between = range(row + 1, row2)
            if all(any((r, c) in taken for r in between) for c in {column, column2}):
                total += 2  # it has to go around
        return total

    for _ in range(4):
        for row, names in enumerate(levels):
            places = (dict(zip(names, p)) for p in permutations(range(COLUMNS), len(names)))
            tried = [at | {name: (row, column) for name, column in p.items()} for p in places]
            at = min(tried, key=cost)
    return at


def svg(found: list[Package]) -> str:
    """The drawing, in the palette's light colours; its style sheet turns it dark where it stands alone, as on GitHub."""
    ink, grey, blue, pale, orange, cream = (
        list(PALETTE)[i] for i in (0, 1, 6, 5, 8, 7)
    )  # fmt: skip
    lines = arrows(found)
    at = cells(rows(found), lines)
    paths, tops, height = routes(at, lines)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        "font-family=\"system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\">",
        f"<style>@media (prefers-color-scheme: dark) {{\n{dark_rules()}}}</style>",
        '<defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="6" markerHeight="6" orient="auto">'
        f'<path d="M0 0.8 L9.4 5 L0 9.2 Z" fill="{grey}"/></marker></defs>',
    ]
    for path in paths:
        parts.append(
            f'<path d="{path}" fill="none" stroke="{grey}" stroke-width="1.8" stroke-linejoin="round" marker-end="url(#a)"/>'
        )
    for package in found:
        row, column = at[package.name]
        x, y = _left(column), tops[row]
        fill, line = (cream, orange) if is_beside(package) else (pale, blue)
        parts.append(
            f'<rect x="{x}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="9" fill="{fill}" stroke="{line}" stroke-width="1.8"/>'
        )
        parts.append(
            f'<text x="{x + 14}" y="{y + 22}" font-size="16" font-weight="600" fill="{ink}">{package.name}</text>'
        )
        doc = textwrap.wrap(package.doc.replace("`", ""), 38, max_lines=3, placeholder=" …")
        for number, text in enumerate(doc):
            parts.append(
                f'<text x="{x + 14}" y="{y + 41 + 16 * number}" font-size="12.5" fill="{ink}">{html.escape(text)}</text>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _left(column: int) -> int:
    return MARGIN + column * (BOX + GAP)


def routes(
    at: dict[str, tuple[int, int]], lines: list[tuple[str, str]]
) -> tuple[list[str], list[int], int]:
    """The arrows' paths, each row's top, and the height of all.

    An arrow leaves at the middle of its package's lower edge and goes sideways between two rows, on a line that only
    the arrows of its package have. Where boxes are in its way, it goes down between two columns, also on a line of its own.
    """
    taken, last = set(at.values()), max(row for row, _ in at.values())
    down = {line: _way_down(at[line[0]], at[line[1]], taken) for line in lines}
    # The lines between row r and r + 1: of packages in row r, and of arrows that come to row r + 1 from farther above.
    tracks: list[list[tuple[str, ...]]] = [[] for _ in range(last + 1)]
    for start, end in lines:
        (row, _), (row2, _) = at[start], at[end]
        way = down[start, end]
        for level, key, wanted in (
            (row, (start,), way != "source"),
            (row2 - 1, (start, end), way not in ("target",)),
        ):
            if wanted and key not in tracks[level]:
                tracks[level].append(key)
    for level in tracks:  # packages first, so that lines that come from above stay below them
        level.sort(key=len)
    tops = [TOP]
    for level in tracks[:-1]:
        tops.append(tops[-1] + HEIGHT + 2 * TRACK + TRACK * max(len(level), 1))
    trunks = [start for start, end in lines if down[start, end].startswith("gap")]
    trunks = list(dict.fromkeys(trunks))

    def track(level: int, *key: str) -> int:
        return tops[level] + HEIGHT + TRACK * (1 + tracks[level].index(key))

    ports = _ports(at, lines)
    paths = []
    for start, end in lines:
        (row, column), (row2, _) = at[start], at[end]
        x, x2, way = _left(column) + BOX // 2, ports[start, end], down[start, end]
        path = f"M{x} {tops[row] + HEIGHT}"
        if way == "target":
            path += f" V{track(row, start)} H{x2}" if x != x2 else ""
        elif way == "source":
            path += f" V{track(row2 - 1, start, end)} H{x2}"
        else:
            side = _left(int(way[3:])) + BOX + GAP // 2 + 8 * (trunks.index(start) % 4) - 12
            path += f" V{track(row, start)} H{side} V{track(row2 - 1, start, end)} H{x2}"
        paths.append(f"{path} V{tops[row2]}")
    return paths, tops, tops[-1] + HEIGHT + TOP


def _way_down(start: tuple[int, int], end: tuple[int, int], taken: set[tuple[int, int]]) -> str:
    """Where an arrow goes down: in the column of its target or its source, or in the gap to the right of column n."""
    (row, column), (row2, column2) = start, end
    between = range(row + 1, row2)
    if not any((r, column2) in taken for r in between):
        return "target"
    if not any((r, column) in taken for r in between):
        return "source"
    if column == column2:
        return f"gap{min(column, COLUMNS - 2)}"
    return f"gap{column2 if column2 < column else column2 - 1}"


def _ports(
    at: dict[str, tuple[int, int]], lines: list[tuple[str, str]]
) -> dict[tuple[str, str], int]:
    """Where each arrow ends on its package's upper edge: the middle is for the box above, each other has its own place."""
    found = {}
    for name, (_, column) in at.items():
        starts = [start for start, end in lines if end == name]
        middle = _left(column) + BOX // 2
        sides: tuple[list[str], list[str]] = ([], [])
        for start in sorted(starts, key=lambda s: (abs(at[s][1] - column), -at[s][0])):
            if (
                at[start][1] == column
                and (start, name) not in found
                and not any(found.get((s, name)) == middle for s in starts)
            ):
                found[start, name] = middle
            else:
                sides[at[start][1] > column or (at[start][1] == column == 0)].append(start)
        for side, sign in zip(sides, (-1, 1)):
            for place, start in enumerate(side, 1):
                found[start, name] = middle + sign * 18 * place
    return found
