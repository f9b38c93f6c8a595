"""Rows of a load test's series by their labels, as the sentences of chapter 6 need them.

Introduced in chapter 6.
"""

from typing import Any

from lib.bench.findings.values import Measured, cell, column, number, value
from lib.bench.records.series import Series

SEQUENTIAL, CONTIGUOUS, PAGED = "sequential", "continuous, contiguous", "continuous, paged"
LIMITED = "with a limit"
COMPARED = (SEQUENTIAL, CONTIGUOUS, PAGED)
NAMES = {
    SEQUENTIAL: "the sequential server",
    CONTIGUOUS: "the contiguous server",
    PAGED: "the paged server",
    LIMITED: "the server with a limit",
}


def counted(n: float, what: str) -> str:
    """ "1 user", "8 users"."""
    return f"{number(n)} {what}{'s' * (n != 1)}"


def labels(series: Series | None, name: str) -> list[Any]:
    """A column of labels as it is, without samples; an empty list where it is absent."""
    return [] if series is None or name not in series else series[name]


def cells(series: Series | None, name: str, **where: Any) -> Measured:
    """Values of a column in the rows whose labels are `where`: one as it is, several as repeats; None without any."""
    chosen = [labels(series, label) for label in where]
    if series is None or name not in series or not all(chosen):
        return None
    found = [
        cell(series, name, row)
        for row, have in enumerate(zip(*chosen))
        if have == tuple(where.values())
    ]
    known = [m for m in found if value(m).known]
    if len(known) < 2:
        return known[0] if known else None
    return [value(m).middle for m in known]


def shares(run: Any, server: str) -> list[float]:
    """The offered rates, as shares of the capacity, at which a server was measured; ascending."""
    series = run["open_loop"]
    pairs = zip(labels(series, "server"), labels(series, "share"))
    return sorted({s for name, s in pairs if name == server and s is not None and s > 0})


def opened(run: Any, name: str, server: str, share: float) -> Measured:
    """A value of the open loop; several runs at one rate are repeats."""
    return cells(run["open_loop"], name, server=server, share=share)


def users(run: Any) -> list[float]:
    """The numbers of users in the closed loop."""
    return labels(run["throughput_by_users"], "users")


def by_users(run: Any, name: str) -> list[Measured]:
    """A column of the throughput by users, by row."""
    return column(run["throughput_by_users"], name)


def latency(run: Any, server: str, what: str, row: int) -> Measured:
    """p50, p95, ttft_p50 or tpot_p50 (s) of a server with the fewest users (row 0) or the most (row -1)."""
    series = run["latency_by_users"]
    found = cell(series, f"{server}, {what}", row)
    if found is not None:
        return found
    levels = labels(series, "users")  # older records have these two in the rows of the runs only
    if not levels:
        return None
    return cells(run["closed_loop"], what, server=server, users=levels[row])


def rate(run: Any, server: str, row: int) -> Measured:
    """tokens/s of a server; row as for `latency`."""
    return cell(run["throughput_by_users"], server, row)


def peak_waiting(run: Any) -> float | None:
    """Most requests that waited in the sequential server at once."""
    series = run["closed_loop"]
    found = zip(labels(series, "server"), labels(series, "waiting_peak"))
    return max((w for name, w in found if name == SEQUENTIAL and w is not None), default=None)
