"""The directive `measured-gains` of the first page: a figure of throughput by chapter, and one sentence per chapter.

Both come from the recorded runs of one machine: the one with the most chapters, and of several a GPU first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective

from book.tools.diagrams import inline
from lib.bench.findings.first_page.at_a_glance import Stage, sentence, stages
from lib.bench.findings.launch_overhead.overhead_whole_way import whole_way
from lib.bench.findings.values import number, times
from lib.bench.paths import measurements_dir
from lib.bench.records.files import Run, read_records

# On a phone, whose column has about 340 px, the text has 12 px or more.
WIDTH, ROW, RIGHT, FONT = 400, 46, 112, 15
MODELS = {"smollm2": "SmolLM2", "gpt2": "GPT-2"}
TEXT, MUTED, BEFORE, GAIN, LOSS = "#1f2430", "#5b6472", "#e3edfb", "#2f6fb5", "#b8641b"


def chosen_runs(folder: Path | None = None) -> dict[int, Run]:
    """Recorded runs by chapter, all of the same hardware; empty where there is no record."""
    by_machine: dict[str, dict[int, Run]] = {}
    for chapter in range(1, 100):
        for run in read_records(f"{chapter:02d}", folder=folder):
            by_machine.setdefault(run.slug, {})[chapter] = run

    def rank(runs: dict[int, Run]) -> tuple[int, bool]:
        kind = next(iter(runs.values())).fingerprint["hardware"]["kind"]
        return len(runs), kind == "cuda"

    return max(by_machine.values(), key=rank, default={})


def waterfall(bars: Sequence[Stage]) -> str:
    """An SVG: one bar per stage. The pale part is what the stage before had; the strong part is gained, orange is lost."""
    most, height = max(bar.tok_s for bar in bars), ROW * len(bars)
    parts = []
    for i, bar in enumerate(bars):
        before = bars[i - 1].tok_s if i else 0.0
        low, high = ((WIDTH - RIGHT) * rate / most for rate in sorted((before, bar.tok_s)))
        y = ROW * i
        label = f"{bar.chapter}  {bar.name}"
        factor = f" ({number(bar.tok_s / before)}×)" if before else ""
        colour = GAIN if bar.tok_s >= before else LOSS
        parts += [
            f'<text x="0" y="{y + 13}" fill="{TEXT}">{escape(label)}</text>',
            f'<rect x="0" y="{y + 19}" width="{low:.1f}" height="18" fill="{BEFORE}"/>',
            f'<rect x="{low:.1f}" y="{y + 19}" width="{max(1.5, high - low):.1f}" height="18" fill="{colour}"/>',
            f'<text x="{high + 6:.1f}" y="{y + 33}" fill="{TEXT}">{number(bar.tok_s)}'
            f'<tspan fill="{MUTED}">{escape(factor)}</tspan></text>',
        ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-size="{FONT}" font-family="inherit">{"".join(parts)}</svg>'
    )


def caption(run: Run, bars: Sequence[Stage]) -> str:
    """What the figure shows, where it was measured, and what the whole way brought."""
    params = run["waterfall"].params
    lengths = f"prompts of {params['prompt']} tokens, answers of {params['new_tokens']}"
    alone = sum(bar.sequences == bars[0].sequences for bar in bars)
    slower = any(after.tok_s < before.tok_s for before, after in zip(bars, bars[1:]))
    return (
        f"Output tokens per second by chapter: {MODELS.get(run.model, run.model)} in {run.dtype}, {lengths}, one run on {run.label}, {run.date}. "
        f"The first {'two bars are' if alone == 2 else 'bar is'} one sequence, the others {bars[-1].sequences}. The "
        f"strong colour is what a bar adds to the one before{', and orange what it costs' if slower else ''}. The last bar is "
        f"{times(bars[-1].tok_s / bars[0].tok_s)} the first. Chapters 5 and 6 serve this engine, and the gains of "
        "chapters 9 to 12 depend on the requests: see below."
    )


def sentences(runs: dict[int, Run]) -> list[tuple[int, str]]:
    """The chapters that have a sentence, in order."""
    found = [(chapter, sentence(chapter, run)) for chapter, run in sorted(runs.items())]
    return [(chapter, text) for chapter, text in found if text is not None]


class MeasuredGains(SphinxDirective):
    """The figure and the sentences; nothing where no machine has recorded a run."""

    def run(self) -> list[nodes.Node]:
        for path in measurements_dir().glob("*/[0-9]*.json"):  # a new record renews the page
            self.env.note_dependency(str(path))
        runs = chosen_runs()
        bars = stages(runs[8]) if 8 in runs else []
        result: list[nodes.Node] = []
        if bars:
            said = whole_way(runs[8])["whole_way_finding"]
            drawing = inline(
                waterfall(bars), "waterfall", alt=said, width=f"100%; max-width: {WIDTH + 40}px"
            )
            figure = nodes.figure("", nodes.raw("", f'<div class="diagram">{drawing}</div>', format="html"))  # fmt: skip
            figure += nodes.caption("", caption(runs[8], bars))
            figure["ids"], figure["names"] = ["fig-waterfall"], ["fig-waterfall"]
            result.append(figure)
        return [*result, self._sentences(runs)]

    def _sentences(self, runs: dict[int, Run]) -> nodes.Node:
        scripts = {int(path.name[:2]): path.stem for path in _chapters(Path(self.env.srcdir))}
        items = nodes.bullet_list(classes=["measured"])
        for chapter, text in sentences(runs):
            if chapter not in scripts:
                continue
            link = addnodes.pending_xref(
                refdomain="std", reftype="doc", reftarget=f"/chapters/{scripts[chapter]}",
                refexplicit=True, refwarn=True, refdoc=self.env.docname,
            )  # fmt: skip
            link += nodes.inline(text=f"Chapter {chapter}.")
            paragraph = nodes.paragraph("", "", link, nodes.Text(f" {text}"))
            items += nodes.list_item("", paragraph)
        return items


def _chapters(root: Path) -> list[Path]:
    return [p for p in sorted((root / "chapters").glob("*.ipynb")) if re.match(r"\d\d_", p.name)]
