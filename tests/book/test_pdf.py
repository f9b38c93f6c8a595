"""The book as one PDF: every page once and in order, links that stay inside, and nothing that needs a click."""

import re

import pytest
import yaml

from book.tools import pdf
from book.tools.check_pages import browser, chromium

needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="no chromium here: nothing can be printed"),
]

PAGE = """<!doctype html><html><head><link rel="stylesheet" href="../_static/a.css"></head><body>
<article class="bd-article"><section id="{name}"><h1>{title}<a class="headerlink" href="#{name}">#</a></h1>{body}</section>
</article></body></html>"""
FIRST = """<p>See <a href="../chapters/b.html#here">there</a>, <a href="#{0}">here</a>, <a href="https://a.org/">out</a>.</p>
<svg><clipPath id="clip"></clipPath><g clip-path="url(#clip)"></g></svg><script>1</script>"""
SECOND = """<p id="here">target</p><details class="hide above-input"><pre>folded</pre></details>
<div class="calculator"><select><option>one</option><option selected>two</option></select><button>go</button></div>
<div class="exercise admonition" id="ex-1">Try.</div>
<div class="solution dropdown toggle-hidden admonition" id="b-solution"><p>Answer 42.</p></div>
<pre>{0}</pre>"""


def written(folder):
    """A built book of two pages."""
    pages = {
        "book/index": ("The first", FIRST.format("index")),
        "chapters/b": ("The second", SECOND.format("x = 1\n" * 50)),
    }
    for name, (title, body) in pages.items():
        path = folder / f"{name}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PAGE.format(name=path.stem, title=title, body=body))
    (folder / "_static").mkdir()
    (folder / "_static" / "a.css").write_text("p { color: black; }")
    return list(pages)


def test_the_pages_are_those_of_the_table_of_contents():
    toc = yaml.safe_load((pdf.ROOT / "_toc.yml").read_text())
    names = pdf.order(toc)
    assert names[0] == "book/index" and len(set(names)) == len(names)
    chapters = sorted(p.stem for p in (pdf.ROOT / "chapters").glob("[0-9]*.ipynb"))
    assert [name.split("/")[1] for name in names if name.startswith("chapters/")] == chapters


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("html")
    names = written(folder)
    with browser() as started:
        found = pdf.articles(started, folder, names)
    return pdf.whole_book(pdf.head_of(folder / "book" / "index.html"), found, ["a fact"])


class TestWholeBook:
    pytestmark = needs_browser

    def test_links_stay_inside_and_ids_are_unique(self, whole):
        links = re.findall(r'href="#([^"]+)"', whole)
        ids = re.findall(r'\bid="([^"]+)"', whole)
        assert len(set(ids)) == len(ids) and set(links) <= set(ids)
        assert 'href="#p-b--here"' in whole and 'href="https://a.org/"' in whole
        assert 'id="p-index--clip"' in whole and 'clip-path="url(#p-index--clip)"' in whole

    def test_nothing_needs_a_click(self, whole):
        for absent in ("<script>1", "<select", "<button", "headerlink", "toggle-hidden", "folded"):
            assert absent not in whole
        assert "<output>two</output>" in whole
        assert 'class="long"' in whole

    def test_solutions_stand_at_the_end(self, whole):
        chapter, end = whole.split('<section class="pdf-solutions"')
        assert "Answer 42." in end and "Answer 42." not in chapter
        assert 'href="#p-b--b-solution"' in chapter and 'id="p-b--b-solution"' in end

    def test_style_sheets_are_found_from_any_folder(self, whole):
        assert re.search(r'<link rel="stylesheet" href="file:///[^"]+/_static/a\.css">', whole)

    def test_it_is_printed(self, tmp_path):
        names = written(tmp_path / "html")
        out = tmp_path / "out" / "book.pdf"
        pdf.make(tmp_path / "html", out, names)
        data = out.read_bytes()
        assert data.startswith(b"%PDF") and [p.name for p in out.parent.iterdir()] == ["book.pdf"]
        # Title, contents, two pages of which the second has long code, solutions.
        assert len(re.findall(rb"/Type /Page\b", data)) >= 5
        assert b"/Outlines" in data

    def test_a_missing_page_is_named(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"html must hold the built book, no file .*book/no\.html"
        ):
            pdf.make(tmp_path, tmp_path / "x.pdf", ["book/no"])
