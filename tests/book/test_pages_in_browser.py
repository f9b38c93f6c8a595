"""The built book in a real browser: nothing leaves its column or is cut, at 1300 and 390 px, light and dark."""

from pathlib import Path

import pytest

from book.tools.check_pages import browser, chromium, measured, opened, pages

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
PAGES = pages(HTML)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="no chromium here: pages are not measured"),
]

TOY = """<html><body><main><article class="bd-article" style="width: 340px">{}</article></main></body></html>"""
WIDE = '<div style="width: 600px; height: 20px">wide</div>'
DRAWING = (
    '<svg viewBox="0 0 600 50" style="width: 100%"><text y="20" font-size="{}">words</text></svg>'
)
TABLE = "<table><tr>" + "<td>anumberofletterswithoutabreak</td>" * 4 + "</tr></table>"
BROKEN = {
    "a wide box": (WIDE, "leaves the column by 260 px"),
    "a wide table": (TABLE, "leaves the column"),
    "a cut box": (f'<div style="overflow: hidden">{WIDE}</div>', "cut by 260 px"),
    "small text in a drawing": (DRAWING.format(12), 'text of 6.8 px in a figure: "words"'),
}
FINE = {
    "text": "<p>" + "words " * 200 + "</p>",
    "a readable drawing": DRAWING.format(30),
    "a hidden box": f'<div style="display: none">{WIDE}</div>',
}


@pytest.fixture(scope="module")
def chrome():
    with browser() as started:
        yield started


def look(chrome, tmp_path, body: str) -> list[str]:
    (tmp_path / "page.html").write_text(TOY.format(body))
    page = opened(chrome, tmp_path / "page.html")
    found = measured(page)
    page.close()
    return found


@pytest.mark.parametrize("kind", BROKEN)
def test_the_check_finds(chrome, tmp_path, kind):
    body, words = BROKEN[kind]
    found = look(chrome, tmp_path, body)
    assert len([line for line in found if words in line and line.startswith("390 px")]) == 2
    assert {line[:13] for line in found} >= {"390 px light:", "390 px dark: "}


@pytest.mark.parametrize("kind", FINE)
def test_the_check_passes(chrome, tmp_path, kind):
    assert look(chrome, tmp_path, FINE[kind]) == []


def test_code_may_scroll_on_a_phone_only(chrome, tmp_path):
    found = look(chrome, tmp_path, f'<pre style="overflow: auto">{"x = 1; " * 30}</pre>')
    assert len(found) == 2 and all("1300 px" in line and "<pre>" in line for line in found)


@pytest.mark.skipif(not PAGES, reason="the book is not built: make book")
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_nothing_on_the_page_is_cut_or_too_small(chrome, path):
    page = opened(chrome, path)
    found = measured(page)
    page.close()
    assert not found, "\n".join(found)
