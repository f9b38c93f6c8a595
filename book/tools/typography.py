"""Small changes to the pages' HTML and numbers for the eye.

Options in inline code stay in one line, a link does not begin with its space, the table of executed chapters names
their titles, and numbers of the appendix begin with a letter, so that none is taken for one of a chapter.
"""

from __future__ import annotations

import re
from string import ascii_uppercase

from docutils import nodes

# A word of inline code that is an option or begins with one: --url, -m, ARGS="--model, [--rate.
_OPTION = re.compile(
    r'<span class="pre">((?:\w+=)?(?:&quot;|&#39;|["\'\[(])*-{1,2}[A-Za-z][^<]*)</span>'
)
_LINK_WITH_SPACE = re.compile(r"(<a\b[^>]*>) +")
_CHAPTER = re.compile(r"chapters/\d")  # such a page without a number of its own is of the appendix


def set_for_the_eye(body: str) -> str:
    """The page's body with options marked and the space before the links of solutions outside of them."""
    body = _OPTION.sub(r'<span class="pre option">\1</span>', body)
    return re.sub(
        r'(?<=<p class="admonition-title">)Solution to<a.*?</p>',
        lambda title: _LINK_WITH_SPACE.sub(r" \1", title[0], count=1),
        body,
        flags=re.S,
    )


def appendix_letters(docnames: list[str], secnumbers: dict[str, dict]) -> dict[str, str]:
    """A letter for each chapter without a number, in the order of the table of contents: {"chapters/14_x": "A"}."""
    chapters = [name for name in docnames if _CHAPTER.match(name) and not secnumbers.get(name)]
    return dict(zip(chapters, ascii_uppercase))


def renumbered(
    fignumbers: dict[str, dict[str, dict[str, tuple]]], letters: dict[str, str]
) -> dict[str, dict[str, dict[str, tuple]]]:
    """Sphinx' numbers, page → kind → id → number. A page of `letters` counts by itself and has its letter in front.

    All numbers without a chapter's are counted in one row by Sphinx; the others close the gap that this leaves.
    """
    found: dict[str, dict[str, dict[str, tuple]]] = {}
    plain: dict[str, int] = {}
    for page, kinds in fignumbers.items():
        found[page] = {}
        for kind, numbers in kinds.items():
            found[page][kind] = new = dict(numbers)
            for place, key in enumerate(numbers, 1):
                if page in letters:
                    new[key] = (letters[page], place)
                elif len(numbers[key]) == 1:
                    plain[kind] = plain.get(kind, 0) + 1
                    new[key] = (plain[kind],)
    return found


def number_appendix(app, env) -> list[str]:
    """Runs when Sphinx has numbered all figures, equations and exercises. Returns the pages that it changed."""
    before = env.toc_fignumbers
    letters = appendix_letters(list(before), env.toc_secnumbers)
    env.toc_fignumbers = renumbered(before, letters)
    return [page for page, kinds in env.toc_fignumbers.items() if kinds != before[page]]


def name_chapters(app, doctree: nodes.document, docname: str) -> None:
    """The tables of executed pages: titles for their file paths; MyST-NB's has words for its signs, and whole seconds."""
    numbers = app.env.toc_secnumbers
    for table in doctree.findall(nodes.table):
        head = [entry.astext() for entry in next(table.findall(nodes.row))]
        if not {"Run Time (s)", "Times reliable"} & set(head):
            continue
        if "Run Time (s)" in head:
            _round_seconds(table, head.index("Run Time (s)"))
        for text in list(table.findall(nodes.Text)):
            if text in app.env.titles:
                number = "".join(f"{part}. " for part in numbers.get(text, {}).get("") or ())
                text.parent.replace(text, nodes.Text(number + app.env.titles[text].astext()))
            elif text in ("✅", "❌"):
                text.parent.replace(text, nodes.Text("ok" if text == "✅" else "failed"))


def _round_seconds(table: nodes.table, column: int) -> None:
    for row in table.findall(nodes.row):
        row[column]["classes"].append("number")
        for text in list(row[column].findall(nodes.Text)):
            if text.replace(".", "", 1).isdigit():
                text.parent.replace(text, nodes.Text(f"{float(text):,.0f}"))


def change_page(app, pagename, templatename, context, doctree) -> None:
    if "body" in context:
        context["body"] = set_for_the_eye(context["body"])


def setup(app) -> None:
    app.connect("env-get-updated", number_appendix, priority=900)
    app.connect("doctree-resolved", name_chapters)
    app.connect("html-page-context", change_page)
