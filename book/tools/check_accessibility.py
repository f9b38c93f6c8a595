"""Checks the built pages with axe, in a real browser, in light and dark: contrast, names of controls, landmarks.

    pip install axe-playwright-python
    python book/tools/check_accessibility.py            # the pages in _build/html; exits 1 for a serious violation

Violations of lesser impact are printed and do not fail the check.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from book.tools.check_pages import THEMES, browser, opened, pages  # noqa: E402

PACKAGE = "axe_playwright_python"
FAILING = ("serious", "critical")
RUN = """
async () => (await axe.run(document)).violations.map(({ id, impact, nodes }) =>
  [id, impact, nodes.map((node) => `${node.target.join(" ")}: ${node.html.slice(0, 120)}`)])
"""


def axe_script() -> Path | None:
    """The script of axe in the installed package; None where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    return Path(folders[0]) / "axe.min.js" if folders else None


def violations(page: Any, script: Path) -> list[tuple[str, str]]:
    """(impact, one line) per rule that an opened page violates, in each theme."""
    found = []
    page.evaluate(script.read_text(encoding="utf-8"))
    for theme in THEMES:
        page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
        page.wait_for_timeout(300)  # colours change in a transition
        for rule, impact, places in page.evaluate(RUN):
            more = f" and {len(places) - 1} more" if len(places) > 1 else ""
            found.append((impact, f"{theme}: {impact}, {rule}: {places[0]}{more}"))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("html", type=Path, nargs="?", default=ROOT / "_build" / "html")
    parser.add_argument("--only", default="", help="pages whose name holds this")
    options = parser.parse_args()
    script = axe_script()
    if script is None:
        parser.error("axe is not installed: pip install axe-playwright-python")
    chosen = [path for path in pages(options.html.resolve()) if options.only in path.name]
    if not chosen:
        parser.error(f"html must hold built pages, got {options.html}")
    failed = False
    with browser() as started:
        for path in chosen:
            page = opened(started, path)
            for impact, line in violations(page, script):
                failed = failed or impact in FAILING
                print(f"{path.parent.name}/{path.name}: {line}")
            page.close()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
