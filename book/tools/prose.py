"""Changes to the text of all pages: no line breaks between a number and its unit.

The text is changed on the page only: what findings return, and what tests search, keeps its plain space.
"""

from __future__ import annotations

from itertools import groupby

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

from lib.bench.notebook.tables import unbroken

_AS_THEY_ARE = (nodes.literal, nodes.FixedTextElement, nodes.math, nodes.math_block, nodes.raw)


class UnbrokenUnits(SphinxPostTransform):
    """Puts a no-break space between a number and its unit, in all text but code and formulas."""

    default_priority = 900  # after glued values and references have their text

    def run(self, **kwargs) -> None:
        # A text that was put into the list of children by hand has no parent, and stays as it is.
        parents = {id(text.parent): text.parent for text in self.document.findall(nodes.Text)}
        for parent in parents.values():
            if parent is not None and not _is_code(parent):
                _unbreak(parent)


def _unbreak(parent: nodes.Element) -> None:
    # A line's end in the source is a node of its own: neighbours are read as one text.
    children: list[nodes.Node] = []
    for is_text, group in groupby(parent.children, lambda node: isinstance(node, nodes.Text)):
        found = list(group)
        children += [nodes.Text(unbroken("".join(map(str, found))))] if is_text else found
    parent.children = []
    parent.extend(children)


def _is_code(node: nodes.Node | None) -> bool:
    while node is not None:
        if isinstance(node, _AS_THEY_ARE):
            return True
        node = node.parent
    return False


def setup(app) -> None:
    app.add_post_transform(UnbrokenUnits)
