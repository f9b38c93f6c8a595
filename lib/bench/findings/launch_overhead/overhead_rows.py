"""Names of series and engines, and values of rows, as the sentences of chapter 8 need them.

Introduced in chapter 8.
"""

from lib.bench.findings.values import cell, number, value
from lib.bench.records.series import Series

LAUNCHES, KINDS, PRODUCTS, STEPS = "launches", "time_by_kind", "products", "step_by_batch"
PACKED = (
    "packed",
    "packed where faster",
)  # the second in records made before the rule read no clock
COMPILED = ("packed and compiled", "compiled")
NAMES = {
    "plain": "the plain engine", "packed": "the packed engine", "packed where faster": "the packed engine",
    "fused layers": "the engine with fused layers", "packed and compiled": "the packed and compiled engine", "compiled": "the compiled engine",
    "graphs": "the engine with graphs", "graphs, compiled": "the compiled engine with graphs",
    "paged, fused": "the plain engine", "paged, gather": "the engine that gathers",
    "contiguous cache": "the contiguous cache", "no cache": "the engine without a cache",
}  # fmt: skip


def named(series: Series | None, names: tuple[str, ...]) -> str:
    """The first of `names` that the series has as a column; the first of all where it has none."""
    found = [n for n in names if series is not None and n in series]
    return found[0] if found else names[0]


def last_batch(series: Series | None) -> str:
    """ "batch 64": the last row's batch."""
    batch = value(cell(series, "batch", -1)).middle
    return "the largest batch" if batch is None else f"batch {number(batch)}"
