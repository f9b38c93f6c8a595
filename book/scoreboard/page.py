"""The scoreboard as MyST text, from the records: what the `scoreboard` directive of book_ext puts on the page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from book.scoreboard.claims import NOT_A_CLAIM, Row, recorded_hardware
from book.scoreboard.outcomes import (
    COUNTED,
    EXACT,
    INCONCLUSIVE,
    MIXED,
    NOISE,
    NOT_COMPARABLE,
    REFUTED,
    REPRODUCED,
    TOLERANCE,
    UNMEASURED,
    VERDICTS,
    Outcome,
    Records,
)

BADGES = {
    REPRODUCED: "success",
    COUNTED: "success",
    NOT_COMPARABLE: "info",
    INCONCLUSIVE: "warning",
    REFUTED: "danger",
    MIXED: "warning",
    UNMEASURED: "secondary",
}


def plain(text: str) -> str:
    """Text in which MyST finds no markup: names of hardware and versions are not ours."""
    return re.sub(r"([\\`*_{}\[\]<>$|])", r"\\\1", text)


def badge(verdict: str) -> str:
    """The verdict as a badge."""
    return f"{{bdg-{BADGES[verdict]}}}`{verdict}`"


def recorded(found: Mapping[str, Outcome]) -> str:
    """The value from each source; its verdict and note too where there are several sources."""
    parts = []
    for label, outcome in found.items():
        text = f"{plain(label)}: {plain(outcome.value)}"
        if len(found) > 1:
            text += f" → {outcome.verdict}" + (f" ({plain(outcome.note)})" if outcome.note else "")
        parts.append(text)
    return " <br> ".join(parts) or "–"


def judged(row: Row) -> list[str]:
    """The cell of the verdict: its badge, the note where it has one source, and the claim's explanation."""
    notes = [outcome.note for outcome in row.found.values() if outcome.note]
    said = (
        [f"{plain(notes[0][:1].upper() + notes[0][1:])}."] if notes and len(row.found) == 1 else []
    )
    return [f"  - {badge(row.verdict)}", "", f"    {' '.join([*said, row.claim.why])}"]


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
                  f"  - {recorded(row.found)}", *judged(row)]  # fmt: skip
    return "\n".join([*lines, "````"])


def section(rows: Sequence[Row], label: str) -> str:
    """What the scoreboard says about the claims of one section, for that section: the same values and verdicts."""
    lines = ["On the {ref}`scoreboard <scoreboard>`, from the recorded runs:", ""]
    for row in rows:
        if row.claim.section == label:
            figure = f" ({plain(row.claim.published)})" if row.claim.published else ""
            lines += [f"- {plain(row.claim.text)}{figure}: **{row.verdict}**"]
            lines += [f"  - {plain(name)}: {plain(o.value)}" for name, o in row.found.items()]
    if len(lines) == 2:
        raise ValueError(f"no claim of the scoreboard belongs to {label!r}")
    return "\n".join(lines)


def rules_text() -> str:
    """The rules of the verdicts, with the thresholds that the code uses."""
    noise, quarter, exact = (f"{100 * limit:.0f} %" for limit in (NOISE, TOLERANCE, EXACT))
    return "\n".join([
        f"- **{REPRODUCED.capitalize()}**: the claim's direction holds, and its figure is within {quarter} of the published "
        "one, at the size that the claim names and on the same card. A claim without a figure needs only the direction, on "
        "any machine.",
        f"- **{COUNTED.capitalize()}**: bytes are counted and not measured. The count is within {exact} of what was published, "
        "or lies where the published sweep puts it. What this book's own engine takes may differ, and is said beside it.",
        f"- **{NOT_COMPARABLE.capitalize()}**: the direction holds as far as it was measured, and the figure depends on the "
        "card, the size or the work, of which at least one is not the published one. The row says which run is needed. What "
        "another machine measures neither confirms nor refutes such a figure.",
        f"- **{INCONCLUSIVE.capitalize()}**: the two sides differ by at most {noise}, or by less than their repeats do.",
        f"- **{REFUTED.capitalize()}**: the direction does not hold; or card, size and work are the published ones, and the "
        "figure is another.",
        f"- **{MIXED.capitalize()}**: several machines could judge the claim, none of them is the published card, and they "
        "disagree.",
        f"- **{UNMEASURED.capitalize()}**: no recorded run has what the claim needs.",
        "",
        f"Flat means that all values lie within {noise} of each other. Not hurting means keeping at least "
        f"{100 * (1 - TOLERANCE):.0f} %. Nearly flat, of memory, means growing by at most {quarter}. The number of "
        f"{NOT_A_CLAIM} in the published headline table is left out, because it says nothing about the engine.",
    ])  # fmt: skip


def hardware_table(machines: Mapping[str, Records]) -> str:
    """What was recorded on what, or a sentence where nothing was."""
    if not machines:
        return (
            "No run has been recorded yet. `make record` records one; then its values stand above."
        )
    lines = ["````{list-table}", ":header-rows: 1", ":class: runs", "", "* - Hardware", "  - Chapters", "  - Scale",
             "  - Recorded on", "  - PyTorch", "  - GPT-2's weights"]  # fmt: skip
    for label, records in machines.items():
        runs = records.values()
        days = sorted({run.date for run in runs})
        cells = (plain(label), ", ".join(str(int(number)) for number in records), ", ".join(sorted({run.scale for run in runs})),
                 " <br> ".join(plain(day) for day in days),  # a date has a line of its own
                 plain(", ".join(sorted({run.fingerprint["versions"]["torch"] for run in runs}))),
                 plain(", ".join(sorted({run.data.get("weights", "") for run in runs if "gpt2" in run.data.get("model", "")}))))  # fmt: skip
        lines += [f"{'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(cells)]
    return "\n".join([*lines, "````"])


def summary(rows: Sequence[Row]) -> str:
    """One sentence: how many claims came to which verdict."""
    verdicts = [row.verdict for row in rows]
    counts = [f"{verdicts.count(kind)} {kind}" for kind in VERDICTS if kind in verdicts]
    return f"Of {len(rows)} published claims: {', '.join(counts)}."


def page_part(part: str, rows: Sequence[Row], machines: Mapping[str, Records] | None = None) -> str:
    """The MyST text of `summary`, `rules`, `hardware`, one kind of claims, or the claims of one section by its label.

    Raises ValueError for another part.
    """
    if part == "summary":
        return summary(rows)
    if part == "rules":
        return rules_text()
    if part == "hardware":
        return hardware_table(recorded_hardware() if machines is None else machines)
    if part in {row.claim.kind for row in rows}:
        return claims_table(rows, part)
    return section(rows, part)
