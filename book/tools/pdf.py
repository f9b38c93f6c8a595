"""One PDF of the whole book, printed by a browser from the built pages: `make pdf`.

    python book/tools/pdf.py                       # _build/html to _build/token-by-token.pdf
    python book/tools/pdf.py --html H --out F.pdf

The pages' articles follow each other in the order of _toc.yml. Links between them work inside the file, and its outline
has the headings. Animations and calculators are still pictures, code that the pages fold away is left out, and solutions
stand at the end.
"""

from __future__ import annotations

import argparse
import re
import sys
from html import escape
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from book.tools.check_pages import SLOW, browser  # noqa: E402
from book.tools.machine import describe_machine  # noqa: E402
from book.tools.notebooks import pages_url, repository_url  # noqa: E402

TOOLS = Path(__file__).resolve().parent
OUT = ROOT / "_build" / "token-by-token.pdf"
WIDTH = 672  # CSS pixels of A4's text: calculators draw for it
FOOTER = (
    '<div style="width: 100%; font: 8px sans-serif; color: #5b6472; text-align: center">'
    '<span class="pageNumber"></span></div>'
)
TYPESET = "() => window.MathJax?.typesetPromise ? MathJax.typesetPromise() : null"


def order(toc: dict[str, Any]) -> list[str]:
    """The pages of a table of contents, without endings: the root, then each part's."""
    parts = toc.get("parts", [toc])
    return [toc["root"], *(page["file"] for part in parts for page in part.get("chapters", ()))]


def prefix(page: str) -> str:
    """What the ids of a page begin with in the whole book: "chapters/04_paged_cache" is "p-04_paged_cache"."""
    return "p-" + re.sub(r"[^\w-]", "-", page.rsplit("/", 1)[-1])


def articles(started: Any, html: Path, names: list[str]) -> list[dict[str, Any]]:
    """id, title, article and solutions of each page, as pdf_page.js leaves them."""
    paths = {name: (html / f"{name}.html").resolve() for name in names}
    missing = [str(path) for path in paths.values() if not path.exists()]
    if missing:
        raise ValueError(f"html must hold the built book, no file {', '.join(missing)}")
    addresses = {path.as_uri(): prefix(name) for name, path in paths.items()}
    script, found = (TOOLS / "pdf_page.js").read_text(), []
    # Animations stand still where less motion is asked for.
    page = started.new_page(viewport={"width": WIDTH, "height": 900}, reduced_motion="reduce")
    page.set_default_timeout(SLOW)
    page.route("**/*", local_without_mathjax)
    for name, path in paths.items():
        page.goto(path.as_uri(), wait_until="load")
        page.evaluate("() => { document.documentElement.dataset.theme = 'light'; }")
        page.wait_for_timeout(200)  # calculators draw when they know their width
        found.append(page.evaluate(script, [prefix(name), addresses]))
    page.close()
    return found


def local_without_mathjax(route: Any) -> None:
    """Loads the book's own files, but for MathJax: formulae are typeset in the whole book."""
    url = route.request.url
    if url.startswith("file:") and "/mathjax/" not in url:
        route.continue_()
    else:
        route.abort()


def whole_book(head: str, found: list[dict[str, Any]], facts: list[str]) -> str:
    """The HTML of the whole book. head: style sheets and scripts. facts: lines below the title."""
    title, *others = (escape(page["title"]) for page in found)
    lines = "".join(f"<p>{escape(fact)}</p>" for fact in facts)
    items = [*zip((page["id"] for page in found[1:]), others), ("solutions", "Solutions")]
    contents = "".join(f'<li><a href="#{name}">{text}</a></li>' for name, text in items)
    solutions = "".join(
        f"<h2>{escape(page['title'])}</h2>{''.join(page['solutions'])}"
        for page in found
        if page["solutions"]
    )
    return (
        f'<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>{title}</title>{head}'
        f"<style>{(TOOLS / 'pdf.css').read_text()}</style></head><body><main class='bd-content'>"
        f'<section class="pdf-title"><h1>{title}</h1>{lines}</section>'
        f'<section class="pdf-contents"><h1>Contents</h1><ol>{contents}</ol></section>'
        + "".join(page["article"] for page in found)
        + f'<section class="pdf-solutions" id="solutions"><h1>Solutions</h1>{solutions}</section>'
        "</main></body></html>"
    )


def head_of(path: Path) -> str:
    """The style sheets and MathJax of a built page, with addresses that hold in any folder."""
    text = path.read_text(encoding="utf-8")
    sheets = re.findall(r'<link\b[^>]*\brel="stylesheet"[^>]*\bhref="([^"?#]+)', text)
    sheets += re.findall(r'<link\b[^>]*\bhref="([^"?#]+)[^>]*\brel="stylesheet"', text)
    links = "".join(
        f'<link rel="stylesheet" href="{(path.parent / sheet).resolve().as_uri()}">'
        for sheet in dict.fromkeys(sheets)
        if "://" not in sheet
    )
    math = path.parents[1] / "_static" / "mathjax" / "tex-chtml.js"
    settings = re.search(r"<script>window\.MathJax = .*?</script>", text)
    return links + (settings[0] if settings else "") + f'<script src="{math.as_uri()}"></script>'


def facts() -> list[str]:
    """The lines below the title: where the book is, and what executed it."""
    machine = describe_machine()
    return [
        "An LLM inference engine, built one measured step at a time.",
        f"Pages for the screen, with animations and calculators: {pages_url(repository_url())}",
        f"Source: {repository_url()}",
        f"Executed on {machine['Hardware']}.",
        "Code that the pages fold away is left out here; it stands in the files of the chapters.",
    ]


def make(html: Path, out: Path, names: list[str]) -> None:
    """Prints the pages `names` of the built book into `out`. Raises ValueError where one is missing."""
    html = html.resolve()
    with browser() as started:
        found = articles(started, html, names)
        text = whole_book(head_of(html / f"{names[0]}.html"), found, facts())
        out.parent.mkdir(parents=True, exist_ok=True)
        source = out.with_suffix(".html").resolve()
        source.write_text(text, encoding="utf-8")
        page = started.new_page(viewport={"width": WIDTH, "height": 900}, reduced_motion="reduce")
        page.goto(source.as_uri(), wait_until="load", timeout=SLOW)
        page.evaluate(TYPESET)
        page.evaluate("() => document.fonts.ready")
        page.set_default_timeout(600_000)
        page.pdf(
            path=out, prefer_css_page_size=True, print_background=True, tagged=True, outline=True,
            display_header_footer=True, header_template="<span></span>", footer_template=FOOTER,
        )  # fmt: skip
        source.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--html", type=Path, default=ROOT / "_build" / "html", metavar="DIR")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE")
    options = parser.parse_args()
    names = order(yaml.safe_load((ROOT / "_toc.yml").read_text()))
    make(options.html, options.out, names)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
