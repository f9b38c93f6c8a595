"""`python -m book.animations`: writes the animated diagrams and their style sheet. `--check` fails where one would change."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from book.animations import batching, graph_replay, paged_blocks
from book.animations.film import style_sheet

BOOK = Path(__file__).resolve().parents[1]


def files() -> dict[Path, str]:
    """Each file that the tool writes, with its text."""
    sources = (batching, paged_blocks, graph_replay)
    films = [source.film() for source in sources]
    found = {
        BOOK / "images" / f"animated_{film.name}.svg": film.svg(source.TITLE)
        for film, source in zip(films, sources)
    }
    return found | {BOOK / "_static" / "animations.css": style_sheet(films)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a file would")
    check = parser.parse_args().check
    stale = {p: t for p, t in files().items() if not p.exists() or p.read_text() != t}
    for path, text in stale.items():
        print(f"{path.relative_to(BOOK.parent)}: {'out of date' if check else 'written'}")
        if not check:
            path.write_text(text)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
