"""axe over the calculators and the built pages, where axe and a browser are installed."""

from pathlib import Path

import pytest

from book.tools.calculator_presets import PRESETS
from book.tools.check_accessibility import FAILING, axe_script, violations
from book.tools.check_pages import browser, chromium, opened, pages
from tests.book.test_calculators import html

ROOT = Path(__file__).resolve().parents[2]
PAGES = pages(ROOT / "_build" / "html")

# The theme's own text and page colours, which a page of the book has around its calculators.
THEME = """<style>
body { color: #222832; background: #ffffff; --pst-color-text-muted: #48566b; }
html[data-theme=dark] body { color: #ced6dd; background: #14181e; --pst-color-text-muted: #9ca4af; }
</style>"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="no chromium here"),
    pytest.mark.skipif(axe_script() is None, reason="axe is not installed: pip install axe-playwright-python"),
]  # fmt: skip


@pytest.fixture(scope="module")
def chrome():
    with browser() as started:
        yield started


def serious(chrome, path):
    page = opened(chrome, path)
    found = [line for impact, line in violations(page, axe_script()) if impact in FAILING]
    page.close()
    return found


def test_a_button_without_a_name_is_found(chrome, tmp_path):
    (tmp_path / "page.html").write_text(
        "<html lang='en'><title>T</title><main><button></button></main></html>"
    )
    found = serious(chrome, tmp_path / "page.html")
    assert len(found) == 2 and all("button-name" in line for line in found)


@pytest.mark.parametrize("name", PRESETS)
def test_a_calculator_has_no_serious_violation(chrome, tmp_path, name):
    page = html(name).replace("<html ", '<html lang="en" ')
    page = page.replace("<head>", f"<head><title>T</title>{THEME}")
    (tmp_path / "page.html").write_text(page)
    assert serious(chrome, tmp_path / "page.html") == []


@pytest.mark.slow
@pytest.mark.skipif(not PAGES, reason="the book is not built: make book")
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_has_no_serious_violation(chrome, path):
    assert serious(chrome, path) == []
