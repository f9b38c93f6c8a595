"""Checks links: those between the built pages, or with `--external` those that the sources have to other hosts.

    python book/tools/check_links.py _build/html    # files and anchors; needs no network
    python book/tools/check_links.py --external     # addresses in book/, chapters/ and the pages at the root

Exits 1 where a link leads nowhere. Uses the standard library only.
"""

from __future__ import annotations

import argparse
import re
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("*.md", "CITATION.cff", "book/*.md", "book/references.bib", "chapters/*.py")
# Addresses of the reader's own machine, and patterns of addresses.
NOT_EXTERNAL = re.compile(r"https?://(127\.0\.0\.1|localhost|0\.0\.0\.0|[^.]*$)|[$…*]")
ADDRESS = re.compile(r"https?://[^\s\"'`<>\\{}|]+")
FORBIDDEN = (401, 403, 405, 406, 429)  # the host answers, but not to a program


class _Links(HTMLParser):
    """The targets of a page's links, and the names that a link can lead to."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.targets: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.targets.append(values["href"])


@cache
def links_of(page: Path) -> _Links:
    found = _Links()
    found.feed(page.read_text(encoding="utf-8", errors="replace"))
    return found


def broken_links(html: Path) -> list[str]:
    """One line per link between pages that leads to no file or no anchor. Raises FileNotFoundError without pages."""
    pages = [page for page in sorted(html.rglob("*.html")) if "_static" not in page.parts]
    if not pages:
        raise FileNotFoundError(f"no .html file under {html}")
    found = []
    for page in pages:
        for target in dict.fromkeys(links_of(page).targets):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file():
                found.append(f"{page.relative_to(html)}: {target}: no such file")
            elif parts.fragment and file.suffix == ".html":
                if unquote(parts.fragment) not in links_of(file).anchors:
                    found.append(f"{page.relative_to(html)}: {target}: no such anchor")
    return found


def external_addresses(root: Path) -> dict[str, list[str]]:
    """Addresses on other hosts, each with the files that have it."""
    found: dict[str, list[str]] = {}
    for pattern in SOURCES:
        for path in sorted(root.glob(pattern)):
            for address in ADDRESS.findall(path.read_text(encoding="utf-8")):
                if not NOT_EXTERNAL.search(address):
                    found.setdefault(trimmed(address), []).append(str(path.relative_to(root)))
    return found


def trimmed(address: str) -> str:
    """The address without the punctuation of its sentence: a full stop, or a bracket that it does not open itself."""
    while address[-1] in ".,;:!)]}":
        if address[-1] == ")" and address.count("(") >= address.count(")"):
            break
        address = address[:-1]
    return address


def problem(address: str, seconds: float = 20) -> str | None:
    """What is wrong with an address; None if it answers, or if its host refuses programs only."""
    request = urllib.request.Request(address, headers={"User-Agent": "Mozilla/5.0 (link check)"})
    try:
        with urllib.request.urlopen(request, timeout=seconds):
            return None
    except urllib.error.HTTPError as error:
        return None if error.code in FORBIDDEN else f"status {error.code}"
    except (OSError, ValueError) as error:
        return str(error)


def broken_addresses(root: Path) -> list[str]:
    """One line per address that does not answer, with the files that have it."""
    found = external_addresses(root)
    with ThreadPoolExecutor(8) as pool:
        problems = dict(zip(found, pool.map(problem, found)))
    return [
        f"{address}: {what} ({', '.join(dict.fromkeys(found[address]))})"
        for address, what in problems.items()
        if what is not None
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("html", type=Path, nargs="?", default=ROOT / "_build" / "html")
    parser.add_argument("--external", action="store_true", help="ask other hosts instead")
    options = parser.parse_args()
    found = broken_addresses(ROOT) if options.external else broken_links(options.html)
    print("\n".join(found) if found else "all links lead somewhere")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
