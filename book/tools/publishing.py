"""What the published book has besides its pages: a sitemap, a page for wrong addresses, and a preview for shared links.

The address of the published book follows from that of the repository on GitHub, which stands in _config.yml.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from docutils import nodes

from book.tools.notebooks import pages_url, repository_url

SUMMARY = (
    "Build an LLM inference engine, one measured step at a time: a book of executable chapters."
)
CARD = "_static/social_card.png"  # 1200 x 630 pixels; drawn by social_card.py

NOT_FOUND = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>No such page: {title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font-family: system-ui, sans-serif; line-height: 1.6; margin: 15vh auto; max-width: 34rem; padding: 0 1.2rem; }}
</style>
</head>
<body>
<h1>No such page</h1>
<p>{title} has no page at this address. Chapters and pages may have been renamed since the link was made.</p>
<p><a href="{base}">The first page of the book</a> lists all chapters. <a href="{base}search.html">Search</a> finds a
word in all of them.</p>
</body>
</html>
"""


def sitemap(base: str, pages: list[str]) -> str:
    """XML of the pages' addresses; `pages` are paths without .html."""
    lines = "".join(f"<url><loc>{escape(base + page)}.html</loc></url>\n" for page in sorted(pages))
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{lines}</urlset>\n'
    )


def preview(base: str, page: str, title: str) -> str:
    """The tags by which other sites show a link to the page: title, summary and picture."""
    tags = {
        "og:type": "article",
        "og:site_name": "Token by Token",
        "og:title": title,
        "og:description": SUMMARY,
        "og:url": f"{base}{page}.html",
        "og:image": base + CARD,
        "og:image:width": "1200",
        "og:image:height": "630",
        "og:image:alt": "Token by Token. An LLM inference engine, built one measured step at a time.",
    }
    lines = [f'<meta property="{name}" content="{escape(text)}" />' for name, text in tags.items()]
    lines += ['<meta name="twitter:card" content="summary_large_image" />']
    return "\n".join(lines)


def set_base_url(app, config) -> None:
    config.html_baseurl = config.html_baseurl or pages_url(repository_url())


def add_preview(app, pagename, templatename, context, doctree) -> None:
    if doctree is not None:
        titles = doctree.findall(nodes.title)
        title = next((node.astext() for node in titles), app.config.project)
        context["metatags"] = context.get("metatags", "") + preview(
            app.config.html_baseurl, pagename, title
        )


def write_extra_pages(app, error) -> None:
    if error is not None or app.builder.name != "html":
        return
    out, base = Path(app.outdir), app.config.html_baseurl
    (out / "sitemap.xml").write_text(sitemap(base, list(app.env.found_docs)), encoding="utf-8")
    text = NOT_FOUND.format(title=escape(app.config.project), base=base)
    (out / "404.html").write_text(text, encoding="utf-8")


def setup(app) -> None:
    app.connect("config-inited", set_base_url)
    app.connect("html-page-context", add_preview)
    app.connect("build-finished", write_extra_pages)
