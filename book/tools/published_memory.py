"""The numbers and tables of the appendix on the published memory, computed while the book is built.

`filled` puts them into the page's text: `<<name>>` is a number, and a line `<<table name>>` is a Markdown table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lib.bench.findings.paged_cache.published_memory import (
    BASE,
    LOGIT_ROWS,
    SLOPE,
    SLOT,
    Audit,
    audit,
    fragmentation,
    stress,
    sweeps,
)
from lib.bench.records.files import reference


def numbers(found: Audit) -> dict[str, str]:
    """Every number that the page may name."""
    ran, by_batch = stress(), sweeps()["by_batch"]
    return {
        "base": f"{BASE}",
        "slope": f"{SLOPE}",
        "slot": f"{SLOT:.0f}",
        "base_rest": f"{found.base_rest:.1f}",
        "blocks": f"{by_batch['num_blocks']:,}",
        "rest_low": f"{min(found.rests):.1f}",
        "rest_high": f"{max(found.rests):.1f}",
        "headline": f"{reference()['headline']['paged_memory_reduction_bs256']}",
        "ratio_published": f"{found.ratio[0]:.2f}",
        "ratio_standing": f"{found.ratio[1]:.1f}",
        "ratio_fitting": f"{found.ratio[2]:.1f}",
        "cross_published": f"{found.crossing[0]}",
        "cross_standing": f"{found.crossing[1]}",
        "batch_below": f"{max(n for n in found.batch if n < found.crossing[0])}",
        "batch_above": f"{min(n for n in found.batch if n >= found.crossing[0])}",
        "per_sequence": f"{found.per_sequence:.1f}",
        "fail_published": f"{ran['with_reset']:.1f}",
        "fail_standing": f"{ran['standing']:.1f}",
        "equal_slots": f"{ran['equal_slots']}",
        "served": f"{ran['served']:,}",
        "equal_gain": f"{ran['served'] // ran['equal_slots']}",
        "stress_blocks": f"{ran['blocks']:,}",
    }


def tables(found: Audit) -> dict[str, str]:
    """The page's tables, as Markdown."""
    ran = stress()
    base = [
        ["weights", f"{found.weights:.1f}"],
        ["twelve masks", f"{found.masks:.1f}"],
        ["not derived", f"{found.base_rest:.1f}"],
        ["together", f"{BASE}"],
    ]
    paged = [
        [n, f"{mib:,.1f}", BASE, f"{found.pool:,.1f}", f"{LOGIT_ROWS * n * found.row:.1f}", f"{rest:.1f}"]
        for n, mib, rest in zip(found.batch, found.paged, found.rests)
    ]  # fmt: skip
    cases = [
        [case, f"{ratio:.3g}×", crossing] for case, ratio, crossing in zip(*found.columns.values())
    ]
    failed = [
        ["contiguous, 1,024 sequences, with the reset", f"{ran['with_reset']:.1f} GiB", "fails"],
        ["contiguous, 1,024 sequences, standing", f"{ran['standing']:.1f} GiB", "fits"],
        ["paged, 1,024 sequences of 4 blocks", f"4,096 of {ran['blocks']:,} blocks", "fits exactly"],
        ["paged, 2,048 sequences of 4 blocks", f"8,192 of {ran['blocks']:,} blocks", "fails"],
    ]  # fmt: skip
    return {
        "base": _markdown(["part", "MiB"], base),
        "paged": _markdown(
            ["batch", "published (MiB)", "base", "pool", "11 rows × batch", "not derived"], paged
        ),
        "cases": _markdown(["contiguous over paged", "at batch 256", "smaller from batch"], cases),
        "stress": _markdown(["case", "needs", "result"], failed),
        "fragmentation": _markdown(
            ["block size", "blocks", "slots reserved", "empty", "% empty"], fragmentation()
        ),
    }


def filled(text: str) -> str:
    """The text with its numbers and tables. Raises KeyError for a name that is not there."""
    found = audit()
    drawn, said = tables(found), numbers(found)
    text = re.sub(r"<<table (\w+)>>", lambda match: drawn[match[1]], text)
    return re.sub(r"<<(\w+)>>", lambda match: said[match[1]], text)


def _markdown(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [headers, ["---", *["---:"] * (len(headers) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
