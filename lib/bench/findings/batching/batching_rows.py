"""Names and rows of the series of chapter 3 that its findings share.

Introduced in chapter 3.
"""

from lib.bench.findings.curves import growth
from lib.bench.findings.values import cell
from lib.bench.records.series import Series

CHAT, VARIABLE, EQUAL, BUDGET = "chat", "variable_lengths", "equal_lengths", "token_budget"


def row(series: Series | None, *prefixes: str) -> int:
    """The row whose engine begins with a prefix; with two, the second among those of the first; -1000 for none."""
    if series is None or "engine" not in series:
        return -1000
    found = [i for i, name in enumerate(series["engine"]) if str(name).startswith(prefixes[0])]
    place = len(prefixes) - 1
    return found[place] if len(found) > place else -1000


def over(series: Series | None, name: str, a: int, b: int) -> float | None:
    """Row a over row b of a column."""
    return growth(cell(series, name, b), cell(series, name, a))
