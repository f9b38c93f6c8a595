"""Rows and columns of a series as the sentences of chapter 11 need them.

Introduced in chapter 11.
"""

from typing import Any

from lib.bench.findings.values import cell, value
from lib.bench.records.series import Series


def axis(series: Series | None, name: str) -> list[Any]:
    """The values of a column; an empty list where there is none."""
    return list(series[name]) if series is not None and name in series else []


def named(series: Series | None, column: str) -> dict[str, float]:
    """The medians of a column, by the column "format"; unknown ones are left out."""
    found = {n: value(cell(series, column, i)).middle for i, n in enumerate(axis(series, "format"))}
    return {name: x for name, x in found.items() if x is not None}
