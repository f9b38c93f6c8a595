"""The time of an answer by users: until its first token, per token, and in the queue.

Each function takes a run; most return sentences of chapter 6.

Introduced in chapter 6.
"""

from typing import Any

from lib.bench.findings.load_test.load_rows import (
    CONTIGUOUS,
    NAMES,
    PAGED,
    SEQUENTIAL,
    labels,
    latency,
    peak_waiting,
    users,
)
from lib.bench.findings.run_notes import of_record
from lib.bench.findings.values import (
    column,
    number,
    over,
    percent,
    positive,
    quantity,
    times,
)
from lib.bench.findings.vocabulary import Finding, compare, missing, share


def waiting_share(run: Any, server: str) -> Finding:
    """Part of the median answer, with the most users, that passes before its first token."""
    return share(latency(run, server, "ttft_p50", -1), latency(run, server, "p50", -1))


def latencies(run: Any) -> dict[str, str]:
    """The sentences under the figures of latency by users."""
    slow, fast = (latency(run, name, "p50", -1) for name in (SEQUENTIAL, PAGED))
    levels = labels(run["latency_by_users"], "users")
    if not levels:
        first = missing("the time of an answer").sentence
    else:
        found = compare(fast, slow, NAMES[PAGED], NAMES[SEQUENTIAL])
        first = f"With {number(levels[-1])} users, and by the time of the median answer, {found}."
        first = of_record(run, first) + _together(run, levels)
    parts = [waiting_share(run, name) for name in (SEQUENTIAL, PAGED)]
    second = missing("the wait for the first token").sentence
    if "failed" in (parts[0].kind, parts[1].kind):
        second = "This run cannot tell how much of that time passes before the first token."
    elif all(p.ratio is not None for p in parts):
        second = (
            f"Of that time, {parts[0]} passes before the first token at the sequential server, and {parts[1]} at the "
            "paged one."
        )
    return {
        "answer_finding": first,
        "first_token_finding": second,
        "pace_finding": _pace(run, levels),
        "generator_finding": _generator(run),
    }


def _together(run: Any, levels: list[float]) -> str:
    """Whether the 95th percentiles of the two batching servers lie on each other; begins with a space."""
    series = run["latency_by_users"]
    pairs = zip(column(series, f"{CONTIGUOUS}, p95"), column(series, f"{PAGED}, p95"))
    ratios = [r for a, b in pairs if (r := over(a, b))]
    if not ratios or len(ratios) < len(levels):
        return ""
    apart = max(max(r, 1 / r) for r in ratios) - 1
    if apart > 0.1:
        return ""
    return (
        f" The 95th percentiles of the two batching servers differ by at most {percent(apart)}, so their lines lie on "
        "each other."
    )


def pace(run: Any) -> Finding:
    """A token's time of the paged server with the most users, against one user."""
    alone, many = (latency(run, PAGED, "tpot_p50", row) for row in (0, -1))
    return compare(many, alone, "a token among others", "a token alone")


def _pace(run: Any, levels: list[float]) -> str:
    found = pace(run)
    alone, many = (positive(latency(run, PAGED, "tpot_p50", row)) for row in (0, -1))
    if alone is None or many is None or not levels:
        return missing("the pace of the paged server").sentence
    said = (
        f"A user of the paged server gets a token every {quantity(alone, 's')} alone, and every {quantity(many, 's')} "
        f"among {number(levels[-1])}"
    )
    if found.direction > 0:
        return f"{said}, {times(many / alone)} as long: a batch slows down each of its sequences."
    return f"{said}: this run does not show that a batch slows down its sequences."


def _generator(run: Any) -> str:
    series = run["closed_loop"]
    worst = [x for x in labels(series, "lag_p99") if x is not None]
    marked = [x for x in labels(series, "lagged") if x is not None]
    if not worst or not marked:
        return missing("the lag of the generator").sentence
    late = sum(bool(x) for x in marked)
    return (
        f"In the worst of {len(marked)} runs, the generator sent 99 % of its requests at most "
        f"{quantity(max(worst), 's')} late. It is marked as lagging in {number(late)} of them."
    )


def queue(run: Any) -> dict[str, str]:
    """How long the queue of the sequential server was, for the sentence on the gate."""
    most, levels = peak_waiting(run), users(run)
    if most is None or not levels:
        return {"waited_finding": missing("the queue of the sequential server").sentence}
    return {
        "waited_finding": f"With {number(levels[-1])} users, up to {number(most)} requests waited in the sequential "
        "server at once."
    }
