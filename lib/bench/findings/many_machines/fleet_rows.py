"""Cells of chapter 13's series by the label in their first column.

Introduced in chapter 13.
"""

from lib.bench.findings.values import Measured, cell, value
from lib.bench.records.series import Series


def cell_of(series: Series | None, name: str, column: str) -> Measured:
    """The cell of `column` in the row whose first column is `name`; None where there is none."""
    names = next(iter(series.columns.values()), []) if series is not None else []
    return cell(series, column, names.index(name)) if name in names else None


def number_of(series: Series | None, row: int | str, column: str) -> float | None:
    """A cell's middle, by row number or first column; None where it is not above zero or was not measured."""
    found = cell(series, column, row) if isinstance(row, int) else cell_of(series, row, column)
    middle = value(found).middle
    return middle if middle is not None and middle > 0 else None


def over(a: float | None, b: float | None) -> float | None:
    return a / b if a and b and a > 0 and b > 0 else None
