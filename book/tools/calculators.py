"""The directive `calculator`: a widget of plain JavaScript (book/_static/calculators/) beside a measurement.

    ```{calculator} roofline
    What the reader can try with it, in Markdown.
    ```

In a notebook, and where a browser runs no scripts, the Markdown is what one sees. Its presets come from the records
(calculator_presets.py) and are a part of the page.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from book.tools.calculator_presets import PRESETS
from lib.bench.paths import measurements_dir

STATIC = Path(__file__).resolve().parents[1] / "_static"
TITLES = {
    "roofline": "the bound of a decode step",
    "memory": "memory and users",
    "batching": "slots that fill and drain",
    "budget": "a long prompt in chunks",
    "queue": "a queue, a rate and a limit",
    "prefix": "a pool with a prefix cache",
    "speculation": "drafts, acceptance and cost",
}
# Read in this order, before a calculator's own script.
SHARED = ("calculator", "chart", "counts")


def scripts(name: str) -> list[str]:
    """The scripts of one calculator, as paths below the static folder, in the order in which they are read."""
    return [f"calculators/{part}.js" for part in (*SHARED, name)]


def opening(name: str, presets: dict[str, Any]) -> str:
    """The HTML before a calculator's text. The presets are JSON in a script element, which shows nothing."""
    data = json.dumps(presets, ensure_ascii=False).replace("<", "\\u003c")
    title = f"Calculator: {TITLES[name]}"
    return (
        f'<div class="calculator" data-calculator="{name}" role="group" aria-label="{title}">\n'
        f'<script type="application/json">{data}</script>\n'
        f'<p class="calculator-title">{title}</p>\n'
    )


CLOSING = '<p class="calculator-without">This calculator needs JavaScript.</p>\n</div>\n'


class Calculator(SphinxDirective):
    """One calculator by its name, with the text that stands above its fields."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        (name,) = self.arguments
        if name not in PRESETS:
            raise self.error(f"calculator must be one of {', '.join(PRESETS)}, got {name!r}")
        for path in measurements_dir().glob("*/[0-9]*.json"):  # a new record renews the presets
            self.env.note_dependency(str(path))
        text = nodes.container("", is_div=True, classes=["calculator-text"], calculator=name)
        self.state.nested_parse(self.content, self.content_offset, text)
        before = nodes.raw("", opening(name, PRESETS[name]()), format="html")
        return [before, text, nodes.raw("", CLOSING, format="html")]


def add_scripts(app, pagename, templatename, context, doctree) -> None:
    """Adds the scripts to the pages that have a calculator, and to no others."""
    names = [
        node["calculator"]
        for node in (doctree.findall(nodes.container) if doctree else ())
        if "calculator" in node
    ]
    wanted = dict.fromkeys(script for name in names for script in scripts(name))
    for script in wanted:
        app.add_js_file(script, loading_method="defer")


def setup(app) -> None:
    app.add_directive("calculator", Calculator)
    app.connect("html-page-context", add_scripts)
