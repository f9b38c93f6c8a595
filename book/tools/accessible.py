"""Small changes to the pages' HTML for screen readers, where the tools that write it leave something out.

An SVG figure gets its caption as its name, and the entries of the bibliography are items of their list.
"""

from __future__ import annotations

import re
from html import escape, unescape

_FIGURE = re.compile(r"<figure\b.*?</figure>", re.S)
_CAPTION = re.compile(
    r'<span class="caption-text">(.*?)</span>(?:<a class="headerlink"|</p>)', re.S
)
_UNNAMED = re.compile(r'<svg (?![^>]*aria-label)(?=[^>]*role="img")')


def accessible(body: str) -> str:
    """The page's body with these changes; nothing else in it differs."""
    # docutils gives each entry a role that ARIA has withdrawn, and that no list may hold.
    body = body.replace('role="doc-biblioentry"', 'role="listitem"')
    return _FIGURE.sub(lambda found: _named(found[0]), body)


def _named(figure: str) -> str:
    caption = _CAPTION.search(figure)
    if caption is None:
        return figure
    words = " ".join(unescape(re.sub(r"<[^>]+>", "", caption[1])).split())
    return _UNNAMED.sub(lambda _: f'<svg aria-label="{escape(words)}" ', figure)


def change_page(app, pagename, templatename, context, doctree) -> None:
    if "body" in context:
        context["body"] = accessible(context["body"])


def setup(app) -> None:
    app.connect("html-page-context", change_page)
