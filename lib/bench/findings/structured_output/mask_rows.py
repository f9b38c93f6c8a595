"""Rows of a series by a label, as the sentences of chapter 12 need them.

Introduced in chapter 12.
"""

from typing import Any

from lib.bench.findings.values import cell, value
from lib.bench.records.series import Series


def row_of(series: Series | None, column: str, wanted: Any) -> int | None:
    """The row whose `column` is `wanted`; None where there is none."""
    names = series[column] if series is not None and column in series else []
    return names.index(wanted) if wanted in names else None


def number_at(series: Series | None, column: str, row: int | None) -> float | None:
    """The middle of a column in one row; None without a row or a number."""
    return None if row is None else value(cell(series, column, row)).middle
