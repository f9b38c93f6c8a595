"""What the pages say about the load of the machine while the chapters ran; the build leaves it in `_build`.

`load_warning` is the admonition at the top of a disturbed chapter, `load_table` the table on the execution page.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docutils import nodes


def state_path(root: Path) -> Path:
    """Where the build keeps what it knows about each chapter's last run."""
    return root / "_build" / "book_state.json"


def chapter_runs(root: Path) -> dict[str, dict[str, Any]]:
    """Each chapter's last run, by its name: seconds, load_before, load. Empty where no build left a state."""
    try:
        return json.loads(state_path(root).read_text())["chapters"]
    except (FileNotFoundError, ValueError, KeyError):
        return {}


def percent(share: float) -> str:
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def load_warning(run: dict[str, Any]) -> nodes.Element | None:
    """A warning for the top of a chapter's page; None where its run was not disturbed, or its load is unknown."""
    load = run.get("load")
    if not load or not load["disturbed"]:
        return None
    steal = load["steal"]
    stolen = f" The hypervisor gave another {percent(steal)} away." if steal >= 0.005 else ""
    text = (
        f"Other programs used {percent(load['others_mean'])} of the CPU while this chapter ran "
        f"(at most {percent(load['others_max'])}); its times may be too long. If this "
        f"disturbed an experiment too much, the page says so below.{stolen}"
    )
    return nodes.warning("", nodes.paragraph(text=text), classes=["disturbed"])


def warn_on_top(doctree: nodes.document, docname: str, root: Path) -> None:
    """Put the warning below the title of a chapter's page, where one is due. The notebook itself stays as it is."""
    folder, _, name = docname.rpartition("/")
    if folder != "chapters":
        return
    warning = load_warning(chapter_runs(root).get(name, {}))
    section = next(iter(doctree.findall(nodes.section)), None)
    if warning is not None and section is not None:
        titles = [i for i, child in enumerate(section) if isinstance(child, nodes.title)]
        section.insert(titles[0] + 1 if titles else 0, warning)


def load_table(root: Path) -> nodes.Element:
    """One row per chapter: what other programs used before and during its run, and whether its times are reliable."""
    rows = []
    for name, run in sorted(chapter_runs(root).items()):
        before, load = run.get("load_before"), run.get("load")
        rows.append([
            f"chapters/{name}",  # its title on the page, by book.tools.typography
            percent(before["others_mean"]) if before else "unknown",
            percent(load["others_mean"]) if load else "unknown",
            percent(load["others_max"]) if load else "unknown",
            percent(load["steal"]) if load else "unknown",
            ("no" if load["disturbed"] else "yes") if load else "unknown",
        ])  # fmt: skip
    if not rows:
        return nodes.paragraph(text="This copy was built without a measurement of the load.")
    head = ["Chapter", "Before", "During, mean", "During, most", "Hypervisor", "Times reliable"]
    table, group = nodes.table(classes=["colwidths-auto"]), nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=1) for _ in head]
    group += nodes.thead("", _row(head))
    group += nodes.tbody("", *map(_row, rows))
    table += group
    return table


def _row(cells: list[str]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph(text=cell)) for cell in cells))
