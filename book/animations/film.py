"""A drawing in frames: an SVG whose elements appear and vanish, and the CSS that makes them.

Each element says in which frames it is visible. The page's style sheet plays them in a loop. Where a reader asks for
less motion, on paper, and in every program that does not read the style sheet, the SVG is one complete picture: the
elements of its `still` frame, and those that are marked as parts of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape

TEXT, MUTED, BOX, GROUND, LINE = "#1f2430", "#5b6472", "#ffffff", "#f4f6f9", "#c9d0da"
# Fill and line of a request's colour, in the order of the requests.
HUES = (
    ("#e3edfb", "#2f6fb5"),
    ("#fdeedd", "#b8641b"),
    ("#e2f3ea", "#2c7d57"),
    ("#f6e6f0", "#a1437f"),
)
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
WIDTH = 620  # units; texts have 16, so that a phone shows them at 9 px without scrolling
Frames = tuple[int, int]  # the first frame, and the first one after the last


@dataclass
class Film:
    """name: of the file and of its CSS classes. seconds: per frame. still: the frame that the picture without motion shows."""

    name: str
    height: int
    num_frames: int
    seconds: float
    still: int
    _parts: list[str] = field(default_factory=list)
    _used: set[Frames] = field(default_factory=set)

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        line: str = "",
        *,
        frames: Frames | None = None,
        still: bool | None = None,
        dashed: bool = False,
        weight: float = 1.4,
    ) -> None:
        border = f' stroke="{line}" stroke-width="{weight}"' if line else ""
        border += ' stroke-dasharray="3 3"' if dashed else ""
        place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3"'
        self._parts.append(f'<rect {place} fill="{fill}"{border}{self._seen(frames, still)}/>')

    def text(
        self,
        x: float,
        y: float,
        words: str | int,
        *,
        fill: str = TEXT,
        size: float = 16,
        anchor: str = "start",
        bold: bool = False,
        frames: Frames | None = None,
        still: bool | None = None,
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
        place = f'x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}"'
        seen = self._seen(frames, still)
        self._parts.append(f'<text {place} fill="{fill}"{weight}{seen}>{escape(str(words))}</text>')

    def _seen(self, frames: Frames | None, still: bool | None) -> str:
        """Attributes of an element that is visible in `frames` (None: always).

        still: whether the picture without motion has it; None: where it is visible in the still frame.
        """
        if frames is None:
            return ""
        first, end = frames
        if not 0 <= first < end <= self.num_frames:
            raise ValueError(f"frames must lie in 0..{self.num_frames}, got {frames}")
        shown = first <= self.still < end if still is None else still
        hidden = "" if shown else ' visibility="hidden"'
        if frames == (0, self.num_frames):
            return hidden
        self._used.add(frames)
        return f' class="{self._class(frames)}"{hidden}'

    def _class(self, frames: Frames) -> str:
        return f"{self.name}-{frames[0]}-{frames[1]}"

    def svg(self, title: str) -> str:
        """The file's text."""
        box = f'viewBox="0 0 {WIDTH} {self.height}" role="img" font-family="{FONT}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>\n<title>{escape(title)}</title>\n'
        return head + "\n".join(self._parts) + "\n</svg>\n"

    def css(self) -> str:
        """One rule and its keyframes for each span of frames that the drawing uses."""
        total, rules = self.num_frames * self.seconds, []
        for frames in sorted(self._used):
            first, end = frames
            name = self._class(frames)
            keys = [] if first == 0 else ["0% { visibility: hidden; }"]
            keys.append(f"{100 * first / self.num_frames:.3f}% {{ visibility: visible; }}")
            if end < self.num_frames:
                keys.append(f"{100 * end / self.num_frames:.3f}% {{ visibility: hidden; }}")
            rules.append(f".{name} {{ animation: {name} {total:g}s step-end infinite; }}")
            rules.append(f"@keyframes {name} {{ {' '.join(keys)} }}")
        return "\n".join(rules) + "\n"


def style_sheet(films: Iterable[Film]) -> str:
    """The text of animations.css: nothing moves on paper, or where the reader asks for less motion."""
    note = "/* Written by `python -m book.animations`. */\n"
    rules = "".join(film.css() for film in films)
    return f"{note}@media screen and (prefers-reduced-motion: no-preference) {{\n{rules}}}\n"
