"""Measures the built pages in a browser: nothing leaves its column or is cut, and the text in figures is large enough.

On a laptop's screen nothing has to be scrolled sideways. On a phone a code block, a table, an equation or a figure that
is wider than the column may scroll inside its own box; the page itself may not.

    python book/tools/check_pages.py            # the pages in _build/html; exits 1 where something is found
    python book/tools/check_pages.py --shots D  # also takes a picture of each page in light and dark, at both widths
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LAPTOP, PHONE = 1300, 390  # CSS pixels
THEMES = ("light", "dark")
SLOW = 120_000  # ms: a long page on a busy machine
LEAST_TEXT = 9  # pixels of the smallest text in a figure, at both widths

# What a page hides until it is asked for is measured as well.
OPEN = """
.sd-tab-content { display: block !important }
* { animation: none !important; transition: none !important }
mjx-assistive-mml { display: none !important }
"""

TWO_FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"

MEASURE = """
([phone, leastText]) => {
  const found = [];
  const article = document.querySelector("article.bd-article") || document.querySelector("main") || document.body;
  const root = document.documentElement;
  if (root.scrollWidth > window.innerWidth + 1)
    found.push(`the page is ${root.scrollWidth} px wide in a window of ${window.innerWidth}`);

  const name = (el) => {
    const words = (el.textContent || "").trim().replace(/\\s+/g, " ").slice(0, 50);
    const kind = [...el.classList].slice(0, 3).map((c) => "." + c).join("");
    return `<${el.localName}${kind}> "${words}"`;
  };
  const scrolls = (el) => getComputedStyle(el).overflowX !== "visible";
  const style = getComputedStyle(article), box = article.getBoundingClientRect();
  const left = box.left + parseFloat(style.paddingLeft), right = box.right - parseFloat(style.paddingRight);

  const walk = (el) => {
    if (el.matches("script, style, .sr-only, .visually-hidden, a.headerlink, button, input")) return;
    const rect = el.getBoundingClientRect();
    if (!rect.width || !rect.height) return;
    const inside = el.clientWidth;
    if (rect.right > right + 1.5 || rect.left < left - 1.5)
      return void found.push(`${name(el)} leaves the column by ${Math.round(Math.max(rect.right - right, left - rect.left))} px`);
    const over = inside ? el.scrollWidth - inside : 0;
    if (over > 1.5 && scrolls(el)) {
      const how = getComputedStyle(el).overflowX;
      if (!phone) found.push(`${name(el)} is ${over} px wider than its box`);
      else if (how === "hidden" || how === "clip") found.push(`${name(el)} is cut by ${over} px`);
      return;  // it scrolls by itself: what is inside may be wider
    }
    if (el.matches("svg, mjx-container, span.math, pre")) return;
    for (const child of el.children) walk(child);
    // An element whose own text or children are wider than its box, while no child says so: a word that cannot break.
    if (over > 1.5 && !el.matches("table, tr, tbody, thead") && !found.some((f) => f.startsWith("<")))
      found.push(`${name(el)} holds something ${over} px wider than it is`);
  };
  for (const child of article.children) walk(child);

  for (const svg of article.querySelectorAll("svg")) {
    const texts = [...svg.querySelectorAll("text")].filter((t) => t.textContent.trim());
    if (!texts.length || !svg.getBoundingClientRect().width) continue;
    const sizes = texts.map((t) => {
      const m = t.getScreenCTM();
      return [parseFloat(getComputedStyle(t).fontSize) * Math.hypot(m.a, m.b), t.textContent.trim()];
    });
    const [least, words] = sizes.reduce((a, b) => (b[0] < a[0] ? b : a));
    if (least < leastText - 0.05) {
      const caption = svg.closest("figure")?.querySelector("figcaption")?.textContent.trim().slice(0, 40) || "";
      found.push(`text of ${least.toFixed(1)} px in a figure: "${words}" ${caption}`);
    }
  }
  return found;
}
"""


def chromium() -> str | None:
    """The path of an installed Chromium or Chrome, or None."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


@contextmanager
def browser() -> Iterator[Any]:
    """A headless browser (Playwright's). Raises RuntimeError where none is installed."""
    from playwright.sync_api import sync_playwright

    path = chromium()
    if path is None:
        raise RuntimeError("no chromium here")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield started
        finally:
            started.close()


def pages(html: Path) -> list[Path]:
    """The pages of the built book that readers read: those with an article, without search and indices."""
    found = [*html.glob("book/*.html"), *html.glob("chapters/*.html")]
    return sorted(path for path in found if "bd-article" in path.read_text(errors="replace"))


def opened(started: Any, path: Path) -> Any:
    """The page in a window of a laptop's width, with its math set and all that it hides shown. Loads local files only."""
    page = started.new_page(viewport={"width": LAPTOP, "height": 900})
    page.set_default_timeout(SLOW)
    page.route(
        "**/*",
        lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort(),
    )
    page.goto(path.as_uri(), wait_until="load")
    page.evaluate("() => Promise.all([window.MathJax?.startup?.promise, document.fonts.ready])")
    page.add_style_tag(content=OPEN)
    page.evaluate("""() => {
      document.querySelectorAll("details").forEach((d) => (d.open = true));
      document.querySelectorAll(".toggle-hidden").forEach((d) => d.classList.remove("toggle-hidden"));
    }""")
    return page


def measured(page: Any, shots: Path | None = None, name: str = "") -> list[str]:
    """What is wrong with an opened page, at both widths and in both themes: "390 px dark: <table> … by 12 px"."""
    found = []
    for width in (LAPTOP, PHONE):
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate(TWO_FRAMES)  # calculators draw anew for the width
        for theme in THEMES:
            page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
            told = page.evaluate(MEASURE, [width == PHONE, LEAST_TEXT])
            found += [f"{width} px {theme}: {line}" for line in told]
            if shots is not None:
                page.screenshot(path=shots / f"{name}-{width}-{theme}.png", full_page=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "html",
        type=Path,
        nargs="?",
        default=Path(__file__).resolve().parents[2] / "_build" / "html",
    )
    parser.add_argument("--only", default="", help="pages whose name holds this")
    parser.add_argument("--shots", type=Path, metavar="DIR", help="take pictures into this folder")
    options = parser.parse_args()
    if options.shots:
        options.shots.mkdir(parents=True, exist_ok=True)
    count = 0
    with browser() as started:
        for path in pages(options.html.resolve()):
            if options.only not in path.name:
                continue
            page = opened(started, path)
            for line in measured(page, options.shots, path.stem):
                count += 1
                print(f"{path.parent.name}/{path.name}: {line}")
            page.close()
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
