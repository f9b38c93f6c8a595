"""Rows of a series by their names, as the sentences of chapter 10 need them.

Introduced in chapter 10.
"""

from lib.bench.findings.values import cell, value
from lib.bench.records.series import Series


def known_cells(series: Series | None, column: str) -> dict[str, float]:
    """The positive middles of a column, by the name in the first column."""
    names = next(iter(series.columns.values()), []) if series is not None else []
    found = {name: value(cell(series, column, row)).middle for row, name in enumerate(names)}
    return {name: x for name, x in found.items() if x is not None and x > 0}
