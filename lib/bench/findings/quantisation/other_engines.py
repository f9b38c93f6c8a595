"""Sentences about the record "cpu_engines": this engine beside others that read the same file.

Introduced in chapter 11.
"""

from typing import Any

from lib.bench.findings.values import cell, over, value
from lib.bench.findings.vocabulary import ABOUT, compare, missing
from lib.bench.records.series import Series

OURS = "4 bits × int8"
OTHERS = ("OpenVINO GenAI", "llama.cpp")


def verdict(series: Series | None, other: str) -> str:
    """This engine's throughput and another's, one clause per batch size, or what is missing."""
    if series is None or other not in series or OURS not in series:
        return missing(f"{other} beside this engine").sentence
    clauses = []
    for i, batch in enumerate(series["batch"]):
        ours, theirs = cell(series, OURS, i), cell(series, other, i)
        found = compare(ours, theirs, "this engine", other, what="throughput", unit="tokens/s")
        clauses.append(f"at batch {batch} {found}")
    text = "; ".join(clauses)
    return text[0].upper() + text[1:] + "."


def goals(series: Series | None, other: str, wanted: dict[int, float]) -> list[list[Any]]:
    """Table rows: other engine, batch, ratio aimed at, measured ratio (or "–"), and the verdict.

    wanted: the least ratio of our rate to the other's, by batch size. The verdict is "yes", "no",
    "–" without a ratio, or "cannot tell" where the repeats of both overlap at the wanted ratio.
    """
    rows = []
    for i, batch in enumerate(series["batch"] if series is not None else ()):
        if batch not in wanted or other not in series or OURS not in series:
            continue
        ours, aim = cell(series, OURS, i), cell(series, other, i, wanted[batch])
        ratio = over(ours, cell(series, other, i))
        met = "–" if ratio is None else "yes" if ratio >= wanted[batch] else "no"
        first, second = value(ours), value(aim)
        if ratio and first.overlaps(second) and max(first.spread or 0, second.spread or 0) > ABOUT:
            met = "cannot tell"
        rows.append([other, batch, wanted[batch], "–" if ratio is None else f"{ratio:.2f}", met])
    return rows


def findings(run: Any) -> dict[str, str]:
    """`engines_openvino` and `engines_llama`. run: the record "cpu_engines", or None."""
    series = run["engines"] if run is not None else None
    return {
        "engines_openvino": verdict(series, OTHERS[0]),
        "engines_llama": verdict(series, OTHERS[1]),
    }
