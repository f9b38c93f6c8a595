"""What this book adds to Sphinx.

Directives: `diagram` (an SVG that follows the theme), `machine` (what ran the chapters), `load` (what else ran),
`chapters` (the list), `library` (the packages and files of lib/), `scoreboard` (published claims beside recorded runs),
`published-memory` (text of the appendix on the published memory, with its counted numbers), `calculator` (a widget;
see calculators.py), `measured-gains` (the first page's figure and sentences, from the records; see landing.py),
`words` (what the words of the findings mean; see words.py). No line breaks between a number and its unit (prose.py).
A chapter whose times other programs disturbed gets a warning below its title.
"""

from __future__ import annotations

import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from myst_nb.core import render
from sphinx import addnodes
from sphinx.directives.patches import Figure
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from book.scoreboard.claims import scoreboard  # noqa: E402
from book.scoreboard.page import page_part  # noqa: E402
from book.tools import (  # noqa: E402
    accessible,
    bibliography,
    calculators,
    prose,
    publishing,
    typography,
    words,
)
from book.tools.diagrams import inline  # noqa: E402
from book.tools.landing import MeasuredGains  # noqa: E402
from book.tools.library_map import markdown, packages  # noqa: E402
from book.tools.load_notes import load_table, warn_on_top  # noqa: E402
from book.tools.machine import describe_machine  # noqa: E402
from book.tools.notebooks import repository_url  # noqa: E402
from book.tools.published_memory import filled  # noqa: E402
from lib.bench.paths import measurements_dir  # noqa: E402

PAUSE = '<label class="animation-pause"><input type="checkbox"> Pause</label>'


class Diagram(Figure):
    """A numbered figure whose SVG becomes a part of the page, so that its colours follow the theme (see diagrams.py).

    The option `animated` is for the drawings of book/animations: a box below stops them.
    """

    option_spec = Figure.option_spec | {"animated": directives.flag}

    def run(self) -> list[nodes.Node]:
        env = self.state.document.settings.env
        _, path = env.relfn2path(self.arguments[0])
        env.note_dependency(path)
        name, width = Path(path).stem, self.options.get("width", "")
        drawing = inline(Path(path).read_text(), name, self.options.get("alt", ""), width)
        # The style sheet that turns diagrams dark finds them by this class.
        html = f'<div class="diagram">{drawing}</div>'
        if "animated" in self.options:
            html = f'<div class="animated">{html}{PAUSE}</div>'
        box = nodes.raw("", html, format="html")
        result = super().run()
        for figure in (node for node in result if isinstance(node, nodes.figure)):
            image = next(iter(figure.findall(nodes.image)))
            image.parent.replace(image, box)
        return result


class Machine(SphinxDirective):
    """One definition list: hardware, versions and scale of the machine that builds the book."""

    def run(self) -> list[nodes.Node]:
        field_list = nodes.field_list(classes=["machine"])
        for name, value in describe_machine().items():
            body = nodes.field_body("", nodes.paragraph(text=value))
            field_list += nodes.field("", nodes.field_name(text=name), body)
        return [field_list]


class Chapters(SphinxDirective):
    """The chapters, one line each: `01_forward_pass | Title | one sentence`; a link where the chapter exists.

    A chapter's number comes before its title; an appendix has the number of its file in the title.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        items = nodes.definition_list(classes=["chapters"])
        for line in filter(str.strip, self.content):
            name, title, sentence = (part.strip() for part in line.split("|"))
            if not title.startswith("Appendix"):
                title = f"{int(name[:2])}. {title}"
            term = nodes.term()
            if (ROOT / "chapters" / f"{name}.ipynb").exists():
                link = addnodes.pending_xref(
                    refdomain="std",
                    reftype="doc",
                    reftarget=f"/chapters/{name}",
                    refexplicit=True,
                    refwarn=True,
                    refdoc=self.env.docname,
                )
                link += nodes.inline(text=title)
                term += link
            else:
                term += [
                    nodes.Text(title),
                    nodes.inline(text=" (in preparation)", classes=["chapter-planned"]),
                ]
            items += nodes.definition_list_item(
                "", term, nodes.definition("", nodes.paragraph(text=sentence))
            )
        return [items]


class LoadTable(SphinxDirective):
    """What other programs used of the CPU while each chapter ran."""

    def run(self) -> list[nodes.Node]:
        return [load_table(Path(self.env.srcdir))]


class Library(SphinxDirective):
    """The packages of lib/, one line per file; each line links to the file in the repository."""

    def run(self) -> list[nodes.Node]:
        box = nodes.container("", is_div=True, classes=["library"])
        text = markdown(packages(ROOT), f"{repository_url()}/blob/main/", anchors=True)
        self.state.nested_parse(StringList(text.splitlines(), "library"), self.content_offset, box)
        return box.children


class Scoreboard(SphinxDirective):
    """One part of the scoreboard, or the rows of one section by its label (see `page_part` in book/scoreboard/page.py)."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        box = nodes.container("", is_div=True, classes=["scoreboard"])
        for path in measurements_dir().glob("*/[0-9]*.json"):  # a new record renews the page
            self.env.note_dependency(str(path))
        text = page_part(self.arguments[0], scoreboard())
        self.state.nested_parse(
            StringList(text.splitlines(), "scoreboard"), self.content_offset, box
        )
        return box.children


class PublishedMemory(SphinxDirective):
    """Markdown in which `<<name>>` is a counted number and `<<table name>>` a table (book/tools/published_memory.py)."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        box = nodes.container("", is_div=True)
        lines = filled("\n".join(self.content)).splitlines()
        self.state.nested_parse(StringList(lines, "published memory"), self.content_offset, box)
        return box.children


def join_streams(outputs: list[dict]) -> list[dict]:
    """A cell's outputs with all of stdout as one text, and all of stderr as one, each where it first appears."""
    joined: list[dict] = []
    streams: dict[str, dict] = {}
    for output in outputs:
        if output["output_type"] == "stream" and output["name"] in streams:
            streams[output["name"]]["text"] += output["text"]
            continue
        if output["output_type"] == "stream":
            streams[output["name"]] = output
        joined.append(output)
    return joined


def warn_of_load(app, doctree: nodes.document) -> None:
    warn_on_top(doctree, app.env.docname, Path(app.srcdir))


def setup(app):
    # MyST-NB ends each piece of a stream with a newline, so that a text printed token by token falls into lines.
    render.coalesce_streams = join_streams
    bibliography.register()
    calculators.setup(app)
    publishing.setup(app)
    accessible.setup(app)
    prose.setup(app)
    words.setup(app)
    typography.setup(app)
    app.add_directive("diagram", Diagram)
    app.add_directive("machine", Machine)
    app.add_directive("load", LoadTable)
    app.add_directive("library", Library)
    app.add_directive("published-memory", PublishedMemory)
    app.add_directive("chapters", Chapters)
    app.add_directive("scoreboard", Scoreboard)
    app.add_directive("measured-gains", MeasuredGains)
    app.connect("doctree-read", warn_of_load)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
