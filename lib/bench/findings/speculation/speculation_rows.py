"""Rows of a series by their names, as the sentences of chapter 10 need them.

Introduced in chapter 10.
"""

from lib.bench.findings.values import Measured, cell, value
from lib.bench.records.series import Series


def over(a: Measured, b: Measured) -> float | None:
    """The ratio of two middles; None where one is missing or not above zero."""
    x, y = value(a).middle, value(b).middle
    return x / y if x and y and x > 0 and y > 0 else None


def row_of(series: Series | None, name: str) -> int | None:
    """The row whose first column is `name`; None where there is none."""
    names = next(iter(series.columns.values()), []) if series is not None else []
    return names.index(name) if name in names else None


def cell_of(series: Series | None, name: str, column: str) -> Measured:
    """The value of a column in the row of that name; None where there is none."""
    row = row_of(series, name)
    return None if row is None else cell(series, column, row)


def known_cells(series: Series | None, column: str) -> dict[str, float]:
    """The positive middles of a column, by the name in the first column."""
    names = next(iter(series.columns.values()), []) if series is not None else []
    found = {name: value(cell(series, column, row)).middle for row, name in enumerate(names)}
    return {name: x for name, x in found.items() if x is not None and x > 0}
