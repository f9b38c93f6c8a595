"""`python book/tools/social_card.py` draws book/_static/social_card.png, the picture that other sites show for a link.

It needs Chromium. The picture holds no number that a new record could change.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from book.tools.check_pages import browser  # noqa: E402

PATH = ROOT / "book" / "_static" / "social_card.png"
WIDTH, HEIGHT = 1200, 630
# The pool of blocks below the title: the sequence that owns each block, 0 where it is free.
POOL = "111122223333301144440222111100333444412220011"
COLOURS = {
    "0": ("#ffffff", "#c9d0da"),
    "1": ("#c5dbf6", "#2f6fb5"),
    "2": ("#fadcbc", "#b8641b"),
    "3": ("#c4e8d4", "#2c7d57"),
    "4": ("#f0d3e5", "#a1437f"),
}


def card() -> str:
    """The picture as SVG."""
    blocks = ""
    for i, owner in enumerate(POOL):
        fill, line = COLOURS[owner]
        x, y = 80 + (i % 15) * 70, 400 + (i // 15) * 62
        dash = ' stroke-dasharray="6 5"' if owner == "0" else ""
        blocks += f'<rect x="{x}" y="{y}" width="58" height="48" rx="9" fill="{fill}" stroke="{line}" stroke-width="3"{dash}/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="Helvetica, Arial, sans-serif">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#f4f6f9"/>'
        '<text x="80" y="160" font-size="92" font-weight="700" fill="#1f2430">Token by Token</text>'
        '<text x="80" y="238" font-size="42" fill="#5b6472">An LLM inference engine,</text>'
        '<text x="80" y="294" font-size="42" fill="#5b6472">built one measured step at a time</text>'
        f"{blocks}</svg>"
    )


def main() -> None:
    with browser() as started:
        page = started.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_content(f'<body style="margin: 0">{card()}</body>')
        page.screenshot(path=PATH)
    print(f"{PATH.relative_to(ROOT)}: {PATH.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
