"""How wide a drawing has to be so that its smallest text can be read: on a phone it scrolls sideways from there on.

Introduced in chapter 1.
"""

import math
import re

LEAST_TEXT = 9  # CSS pixels


def least_width(svg: str) -> int | None:
    """The width in pixels at which the smallest text of an SVG is LEAST_TEXT high; None for a drawing without text."""
    box = re.search(r'viewBox="[\d.+-]+[ ,]+[\d.+-]+[ ,]+([\d.]+)', svg)
    sizes = [float(size) for size in re.findall(r'font-size(?:="|:\s*)([\d.]+)', svg)]
    if box is None or not sizes:
        return None
    return math.ceil(float(box[1]) * LEAST_TEXT / min(sizes))


def with_least_width(svg: str) -> str:
    """The SVG with that width as the CSS variable --least of its first tag; the page's style sheet uses it on a phone."""
    width = least_width(svg)
    if width is None:
        return svg
    head = re.match(r"<svg[^>]*>", svg)
    if head is None:
        raise ValueError("an SVG has to begin with its <svg> tag")
    rule = f"--least: {width}px"
    if ' style="' in head[0]:
        tag = head[0].replace(' style="', f' style="{rule}; ', 1)
    else:
        tag = head[0].replace("<svg", f'<svg style="{rule}"', 1)
    return tag + svg[head.end() :]
