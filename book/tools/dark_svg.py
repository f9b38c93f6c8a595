"""Write `name.dark.svg` beside every `name.svg` diagram: the same drawing with the palette's dark colours.

Diagrams are drawn by hand with the light colours below and nothing else; the `diagram` directive shows whichever
variant fits the page.  Run by `make notebooks`; `--check` only compares.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

IMAGES = Path(__file__).resolve().parents[1] / "images"

PALETTE = {
    "#1f2430": "#e6e8ee",  # text, strong lines
    "#5b6472": "#a6adbb",  # secondary text, arrows
    "#ffffff": "#1b1e26",  # box
    "#f4f6f9": "#242833",  # group behind boxes
    "#c9d0da": "#434a59",  # hairlines
    "#e3edfb": "#1d3557",  # blue fill
    "#2f6fb5": "#7fb2ec",  # blue line
    "#fdeedd": "#4a3218",  # orange fill
    "#b8641b": "#f0ab62",  # orange line
    "#e2f3ea": "#17402f",  # green fill
    "#2c7d57": "#72cfa2",  # green line
    "#f6e6f0": "#462439",  # pink fill
    "#a1437f": "#e694c6",  # pink line
}
NOT_DIAGRAMS = {"logo.svg"}


def dark_name(name: str) -> str:
    return re.sub(r"\.svg$", ".dark.svg", name)


def to_dark(svg: str) -> str:
    """The drawing in dark colours; ValueError for a colour outside the palette."""
    unknown = sorted({c for c in re.findall(r"#[0-9a-fA-F]{6}\b", svg) if c.lower() not in PALETTE})
    if unknown:
        raise ValueError(
            f"colours outside the palette: {', '.join(unknown)}; use one of {', '.join(PALETTE)}"
        )
    return re.sub(r"#[0-9a-fA-F]{6}\b", lambda m: PALETTE[m[0].lower()], svg)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail if a dark variant is out of date"
    )
    check = parser.parse_args().check
    stale = 0
    for light in sorted(IMAGES.glob("*.svg")):
        if light.name in NOT_DIAGRAMS or light.name.endswith(".dark.svg"):
            continue
        dark, text = light.with_name(dark_name(light.name)), to_dark(light.read_text())
        if not dark.exists() or dark.read_text() != text:
            stale += 1
            print(f"{dark.name}: {'out of date' if check else 'written'}")
            if not check:
                dark.write_text(text)
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
