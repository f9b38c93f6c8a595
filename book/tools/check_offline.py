"""The built book must not need the network: no page may load anything from another host.

Links that a reader clicks (`<a href>`) may lead anywhere.  Scripts, style sheets, fonts, images, frames, and imports
inside style sheets may not.
"""

from __future__ import annotations

import argparse
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

# tag -> attributes that make a browser fetch something while it shows the page
FETCHED = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "audio": ("src",),
    "video": ("src", "poster"),
    "embed": ("src",),
    "object": ("data",),
    "track": ("src",),
    "input": ("src",),
    "image": ("href", "xlink:href"),
    "use": ("href", "xlink:href"),
    "body": ("background",),
}
LINK_RELS_NOT_FETCHED = {
    "canonical",
    "author",
    "license",
    "alternate",
    "next",
    "prev",
    "search",
    "index",
    "help",
}
REMOTE = re.compile(r"^\s*(?:https?:)?//", re.I)
CSS_REMOTE = re.compile(
    r"""(?:@import\s+(?:url\()?|url\()\s*['"]?\s*((?:https?:)?//[^'")\s]+)""", re.I
)
JS_REMOTE = re.compile(
    r"""(?:\bimport\s*\(?\s*|\bfrom\s*|importScripts\(\s*)['"]((?:https?:)?//[^'"]+)"""
)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        for name in FETCHED.get(tag, ()):
            self._look(tag, name, values.get(name, ""))
        if tag == "link" and not set(values.get("rel", "").lower().split()) & LINK_RELS_NOT_FETCHED:
            self._look(tag, "href", values.get("href", ""))
        self.found += [
            f"<{tag} style> {url}" for url in CSS_REMOTE.findall(values.get("style", ""))
        ]
        self._inside = tag if tag in ("style", "script") else ""

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.found += [f"<style> {url}" for url in CSS_REMOTE.findall(data)]
        elif self._inside == "script":
            self.found += [f"<script> {url}" for url in JS_REMOTE.findall(data)]

    def _look(self, tag: str, name: str, value: str) -> None:
        candidates = (
            [part.strip().split(" ")[0] for part in value.split(",")]
            if name == "srcset"
            else [value]
        )
        self.found += [f"<{tag} {name}> {url}" for url in candidates if REMOTE.match(url)]


def remote_loads(folder: Path) -> list[str]:
    """One line for each thing that some page in `folder` would fetch from another host; empty is good.

    Raises FileNotFoundError when the folder holds no page: nothing checked is not a pass.
    """
    pages = sorted(folder.rglob("*.html"))
    if not pages:
        raise FileNotFoundError(f"no .html file under {folder}")
    found = []
    for path in pages:
        page = _Page()
        page.feed(path.read_text(encoding="utf-8", errors="replace"))
        found += [f"{path.relative_to(folder)}: {line}" for line in page.found]
    for path in sorted(folder.rglob("*.css")):
        urls = CSS_REMOTE.findall(path.read_text(encoding="utf-8", errors="replace"))
        found += [f"{path.relative_to(folder)}: {url}" for url in urls]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("_build/html"))
    found = remote_loads(parser.parse_args().folder)
    print("\n".join(found) if found else "offline: no page loads anything from another host")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
