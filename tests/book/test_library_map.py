"""The page about the library is read from lib/: it cannot name a file that is gone or miss one that is there."""

import re
from pathlib import Path

import pytest

from book.tools import library_map, notebooks

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def repository(tmp_path):
    """A lib of three packages: top imports middle and low, middle imports low."""

    def write(name, text):
        path = tmp_path / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("__init__.py", "")
    for package in ("top", "middle", "low"):
        write(f"{package}/__init__.py", f'"""The {package} one. Introduced in chapter 1."""\n')
    write("top/a.py", '"""Does a.\n\nIntroduced in chapter 3.\n"""\nfrom lib.middle.b import b\nfrom lib.low import c\n')  # fmt: skip
    write("middle/b.py", '"""Does b. Introduced in chapter 2."""\ndef b():\n    from ..low.c import c\n')  # fmt: skip
    write("low/c.py", '"""Does c <fast>. Introduced in chapter 1."""\n')
    return tmp_path, write


def test_packages_files_and_first_lines(repository):
    root, _ = repository
    found = library_map.packages(root)
    assert [package.name for package in found] == ["top", "middle", "low"]
    assert found[0].files == (("a.py", "Does a.", "3"),) and found[0].doc == "The top one."
    assert found[0].imports == {"middle", "low"} and found[1].imports == {"low"}
    text = library_map.markdown(found, "https://example.org/")
    assert "- [`b.py`](https://example.org/lib/middle/b.py): Does b. *Chapter\u00a02.*" in text


def test_the_drawing_has_the_arrows_that_do_not_follow_from_others(repository):
    root, write = repository
    found = library_map.packages(root)
    assert library_map.arrows(found) == [("top", "middle"), ("middle", "low")]
    drawing = library_map.svg(found)
    assert drawing.count("marker-end") == 2 and "prefers-color-scheme: dark" in drawing
    write("low/d.py", '"""Introduced in chapter 1."""\nimport lib.top.a\n')
    with pytest.raises(ValueError, match="import each other: .*top → "):
        library_map.packages(root)


def test_the_composition_root_imports_what_builds_on_its_package(repository):
    root, write = repository
    write("engine/__init__.py", "")
    write("engine/part/__init__.py", "")
    write("engine/part/p.py", "import lib.engine.step\n")
    write("engine/step.py", "")
    write("engine/assemble.py", "import lib.engine.part.p\nimport lib.low.c\n")
    imports = {package.name: package.imports for package in library_map.packages(root)}
    assert imports["engine"] == {"low"} and imports["engine.part"] == {"engine"}
    write("engine/step.py", "import lib.engine.part.p\n")
    with pytest.raises(ValueError, match="import each other"):
        library_map.packages(root)


def test_contributing_lists_every_file_of_lib():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    listed = set(re.findall(r"\]\((lib/[^)]+)\)", text))
    files = {str(p.relative_to(ROOT)) for p in (ROOT / "lib").rglob("*.py")}
    assert listed == {name for name in files if not name.endswith("__init__.py")}


def test_the_block_is_replaced_and_the_rest_stays():
    found = library_map.packages(ROOT)
    page = "before\n<!-- library: written by `make notebooks` -->\n@stale@\n<!-- end of library -->\nafter\n"
    once = notebooks.with_library(page, found)
    assert once.startswith("before\n") and once.endswith("after\n") and "@stale@" not in once
    assert notebooks.with_library(once, found) == once


def test_the_places_that_the_page_names_exist():
    text = (ROOT / "book" / "library.md").read_text()
    paths = re.findall(r"`(lib/\S+\.py)`", text)
    assert paths and all((ROOT / path).is_file() for path in paths)


def test_the_links_of_the_page_lead_to_lines_of_its_list():
    text = (ROOT / "book" / "library.md").read_text()
    links = dict(re.findall(r"\[`(lib/\S+\.py)`\]\(#(\S+)\)", text))
    lines = library_map.markdown(library_map.packages(ROOT), "", anchors=True)
    names = re.findall(r"\{#(\S+)\}", lines)
    assert links and set(links.values()) <= set(names) and len(names) == len(set(names))
    assert all(library_map.anchor(path) == name for path, name in links.items())


def test_packages_of_findings_are_listed_by_chapter():
    found = [p for p in library_map.packages(ROOT) if p.name.startswith(library_map.ONE_BOX)]
    assert found[0].name == library_map.ONE_BOX
    chapters = [library_map.by_chapter(package)[0] for package in found[1:]]
    assert chapters == sorted(chapters) and chapters[:3] == [1, 2, 3]


def _ends(path):
    """The y of each corner of an arrow, from its start to its end."""
    y, found = 0, []
    for kind, value in re.findall(r"([MVH])(\S+(?: \d+)?)", path):
        y = int(value.split()[-1]) if kind in "MV" else y
        found.append(y)
    return found


def test_all_arrows_of_the_drawing_lead_down_and_end_at_places_of_their_own():
    found = library_map.drawn(library_map.packages(ROOT))
    lines = library_map.arrows(found)
    levels = library_map.rows(found)
    assert sorted(sum(levels, [])) == sorted(package.name for package in found)
    assert max(map(len, levels)) <= library_map.COLUMNS
    at = library_map.cells(levels, lines)
    assert len(set(at.values())) == len(found)
    assert all(at[start][0] < at[end][0] for start, end in lines)
    paths, tops, height = library_map.routes(at, lines)
    assert all(_ends(path) == sorted(_ends(path)) for path in paths)
    ends = [(path.rsplit("H", 1)[-1].split()[0] if "H" in path else path[1:].split()[0], _ends(path)[-1]) for path in paths]  # fmt: skip
    assert len(set(ends)) == len(ends) and max(y for _, y in ends) < height


def test_the_drawing_shows_each_description_to_its_end():
    drawing = library_map.svg(library_map.drawn(library_map.packages(ROOT)))
    assert "…" not in drawing


def test_the_drawing_has_one_box_for_all_findings():
    found = library_map.drawn(library_map.packages(ROOT))
    (box,) = (package for package in found if package.name.startswith("bench.findings"))
    assert box.name == library_map.ONE_BOX and "bench.records" in box.imports
    assert not any(name.startswith("bench.findings.") for p in found for name in p.imports)
