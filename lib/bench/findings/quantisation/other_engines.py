"""Sentences about the record "cpu_engines": this engine beside others that read the same file.

Introduced in chapter 11.
"""

from typing import Any

from lib.bench.findings.values import cell, value
from lib.bench.findings.vocabulary import compare, missing
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
        found = compare(ours, theirs, "this engine", other, what="throughput", unit="tok/s")
        clauses.append(f"at batch {batch} {found}")
    text = "; ".join(clauses)
    return text[0].upper() + text[1:] + "."


def goals(series: Series | None, other: str, wanted: dict[int, float]) -> list[list[Any]]:
    """Table rows: other engine, batch, ratio aimed at, measured ratio (or "–"), "yes" or "no".

    wanted: the least ratio of our rate to the other's, by batch size.
    """
    rows = []
    for i, batch in enumerate(series["batch"] if series is not None else ()):
        if batch not in wanted or other not in series or OURS not in series:
            continue
        ours, theirs = (value(cell(series, name, i)).middle for name in (OURS, other))
        ratio = ours / theirs if ours and theirs else None
        met = "–" if ratio is None else "yes" if ratio >= wanted[batch] else "no"
        rows.append([other, batch, wanted[batch], "–" if ratio is None else f"{ratio:.2f}", met])
    return rows


def findings(run: Any) -> dict[str, str]:
    """`engines_openvino` and `engines_llama`. run: the record "cpu_engines", or None."""
    series = run["engines"] if run is not None else None
    return {
        "engines_openvino": verdict(series, OTHERS[0]),
        "engines_llama": verdict(series, OTHERS[1]),
    }
