"""The scoreboard as MyST text, from the records: what the `scoreboard` directive of book_ext puts on the page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from book.scoreboard.claims import Row, recorded_hardware
from book.scoreboard.outcomes import DEPENDS, REFUTED, REPRODUCED, UNMEASURED, Records

BADGES = {REPRODUCED: "success", DEPENDS: "warning", REFUTED: "danger", UNMEASURED: "secondary"}


def plain(text: str) -> str:
    """Text in which MyST finds no markup: names of hardware and versions are not ours."""
    return re.sub(r"([\\`*_{}\[\]<>$|])", r"\\\1", text)


def badge(verdict: str) -> str:
    """The verdict's kind as a badge; what it depends on follows as text."""
    kind = next(kind for kind in BADGES if verdict.startswith(kind))
    return f"{{bdg-{BADGES[kind]}}}`{kind}`{verdict.removeprefix(kind)}"


def recorded(row: Row) -> str:
    """Value on each hardware; its verdict too where hardware differ. Hardware without this measurement is left out."""
    found = {label: outcome for label, outcome in row.outcomes.items() if outcome is not None}
    differ = len({outcome.verdict for outcome in found.values()}) > 1
    parts = [f"{plain(label)}: {plain(outcome.value)}" + (f" → {outcome.verdict}" if differ else "")
             for label, outcome in found.items()]  # fmt: skip
    return " <br> ".join(parts) or "–"


def claims_table(rows: Sequence[Row], kind: str) -> str:
    """One kind of claims as a list-table."""
    lines = ["````{list-table}", ":header-rows: 1", ":widths: 34 33 33", ":class: scoreboard", "",
             "* - Published", "  - Recorded", "  - Verdict"]  # fmt: skip
    for row in rows:
        if row.claim.kind != kind:
            continue
        figure = f": **{plain(row.claim.published)}**" if row.claim.kind == "headline" else (
            f" ({plain(row.claim.published)})" if row.claim.published else "")  # fmt: skip
        lines += [f"* - {plain(row.claim.text)}{figure}", "",
                  f"    {{ref}}`{row.claim.section}`",
                  f"  - {recorded(row)}",
                  f"  - {badge(row.verdict)}", "", f"    {row.claim.why}"]  # fmt: skip
    return "\n".join([*lines, "````"])


def hardware_table(machines: Mapping[str, Records]) -> str:
    """What was recorded on what, or a sentence where nothing was."""
    if not machines:
        return (
            "No run has been recorded yet. `make record` records one; then its values stand above."
        )
    lines = ["````{list-table}", ":header-rows: 1", "", "* - Hardware", "  - Chapters", "  - Scale", "  - Recorded on",
             "  - PyTorch"]  # fmt: skip
    for label, records in machines.items():
        runs = records.values()
        cells = (label, ", ".join(str(int(number)) for number in records), ", ".join(sorted({run.scale for run in runs})),
                 ", ".join(sorted({run.date for run in runs})),
                 ", ".join(sorted({run.fingerprint["versions"]["torch"] for run in runs})))  # fmt: skip
        lines += [f"{'*' if i == 0 else ' '} - {plain(cell)}" for i, cell in enumerate(cells)]
    return "\n".join([*lines, "````"])


def summary(rows: Sequence[Row]) -> str:
    """One sentence: how many claims came to which verdict."""
    kinds = [next(kind for kind in BADGES if row.verdict.startswith(kind)) for row in rows]
    words = {kind: kind for kind in BADGES}
    words[DEPENDS] = f"depend{'s' * (kinds.count(DEPENDS) == 1)} on more than the claim says"
    counts = [f"{kinds.count(kind)} {words[kind]}" for kind in BADGES if kind in kinds]
    return f"Of {len(rows)} published claims: {', '.join(counts)}."


def page_part(part: str, rows: Sequence[Row], machines: Mapping[str, Records] | None = None) -> str:
    """The MyST text of `summary`, `hardware`, or of one kind of claims. Raises ValueError for another part."""
    if part == "summary":
        return summary(rows)
    if part == "hardware":
        return hardware_table(recorded_hardware() if machines is None else machines)
    if part in {row.claim.kind for row in rows}:
        return claims_table(rows, part)
    raise ValueError(f"scoreboard has no part {part!r}")
