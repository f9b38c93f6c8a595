"""Cells of chapter 13's series by the label in their first column.

Introduced in chapter 13.
"""

from lib.bench.findings.values import cell, cell_of, value
from lib.bench.records.series import Series


def number_of(series: Series | None, row: int | str, column: str) -> float | None:
    """A cell's middle, by row number or first column; None where it is not above zero or was not measured."""
    found = cell(series, column, row) if isinstance(row, int) else cell_of(series, row, column)
    middle = value(found).middle
    return middle if middle is not None and middle > 0 else None
