"""Overload with a limit on the queue and without: goodput, refusals, the control of two copies.

Each function takes a run; most return sentences of chapter 6.

Introduced in chapter 6.
"""

from typing import Any

from lib.bench.findings.curves import trend
from lib.bench.findings.load_test.load_knee import worst
from lib.bench.findings.load_test.load_rows import LIMITED, NAMES, PAGED, opened, shares
from lib.bench.findings.values import (
    Measured,
    column,
    number,
    percent,
    percent_above,
    positive,
    quantity,
    value,
)
from lib.bench.findings.vocabulary import LITTLE, Finding, compare, missing, versus_prediction


def _twin_times(run: Any) -> list[Measured]:
    """The time of a token of the server with a limit and of its copy, at the lowest rate that both had; [] above 1."""
    both = [s for s in shares(run, LIMITED) if s in shares(run, PAGED)]
    if not both or both[0] >= 1:
        return []
    return [opened(run, "tpot_p50", name, both[0]) for name in (LIMITED, PAGED)]


def twins(run: Any) -> Finding:
    """Whether the two copies of the paged server are equally fast, at the lowest rate that both had."""
    found = _twin_times(run)
    if not found:
        return missing("the control of the two copies below the capacity")
    return compare(*found, NAMES[LIMITED], "its copy without one")


def _apart(ratio: float) -> float:
    """By which share the slower of the two takes longer."""
    return max(ratio, 1 / ratio) - 1


def _alike(run: Any, found: Finding) -> bool:
    """Whether the two differ, and the turns of each, by no more than is allowed."""
    spreads = (value(seconds).spread or 0 for seconds in _twin_times(run))
    return found.ratio is not None and max(_apart(found.ratio), *spreads) <= LITTLE + 1e-9


def twins_reason(run: Any) -> str:
    """Why the two copies cannot be compared, for the gate; empty where they can."""
    found = twins(run)
    if _alike(run, found):
        return ""
    what = "the time of a token of the two copies of one server, below the knee,"
    if found.ratio is None:
        return f"{what} was not measured"
    apart = percent_above(_apart(found.ratio), LITTLE)
    if found.kind == "cannot tell":
        return f"{what} spreads too widely to compare them ({apart} apart at the median)"
    return f"{what} differs by {apart}, more than {percent(LITTLE)}"


def twin(run: Any) -> dict[str, str]:
    """The control: the same program twice, where the limit has nothing to refuse."""
    found = twins(run)
    if found.kind in ("missing", "undefined"):
        return {
            "twin_finding": missing("the control of the two copies below the capacity").sentence
        }
    share = [s for s in shares(run, LIMITED) if s in shares(run, PAGED)][0]
    said = f"At {number(share)} times the capacity, by the time of a token, {found}"
    if _alike(run, found):
        return {
            "twin_finding": f"{said}. Up to {percent(LITTLE)} are allowed. The two can be compared."
        }
    if found.kind == "cannot tell":
        return {"twin_finding": f"{said}."}
    return {
        "twin_finding": f"{said}. The two run the same program, so this difference is no effect of the limit, and what "
        "follows compares two servers that are not alike."
    }


def goodput_gain(run: Any) -> Finding:
    """Goodput in overload, with a limit against without."""
    share = worst(run, LIMITED)
    if share is None:
        return missing("goodput in overload")
    limited, free = (opened(run, "goodput", name, share) for name in (LIMITED, PAGED))
    if positive(limited) and value(free).middle == 0:
        kept = quantity(positive(limited), "requests/s")
        text = f"{NAMES[LIMITED]} keeps a goodput of {kept}, and the one without has none"
        return Finding(text, "several", None, 1)
    return compare(
        limited, free, NAMES[LIMITED], "the one without", what="goodput", unit="requests/s"
    )


def goodput(run: Any) -> dict[str, str]:
    """The sentences under the figure of what became of each request."""
    share, found = worst(run, LIMITED), goodput_gain(run)
    if share is None or found.kind == "missing":
        first = missing("goodput in overload").sentence
    else:
        first = f"At {number(share)} times the capacity, {found}."
        alike = twins(run)
        if found.direction > 0 and alike.direction > 0:
            first += " This server has more although it is the slower of the two."
        if found.direction <= 0 and found.kind not in ("missing", "cannot tell", "undefined"):
            first += " The prediction failed: the limit brought no more goodput."
        first += _per_second(run, share)
    return {
        "goodput_finding": first,
        "refused_finding": _refused(run, share),
        "outcomes_finding": _outcomes(run),
    }


def _per_second(run: Any, share: float) -> str:
    """Why the factor is not that of the figure's shares, where the two tests last differently; begins with a space."""
    limited, free = (positive(opened(run, "duration", name, share)) for name in (LIMITED, PAGED))
    if limited is None or free is None or max(limited / free, free / limited) <= 1.1:
        return ""
    return (
        f" Goodput is per second, and the figure shows shares of all requests: the test with the limit lasted "
        f"{quantity(limited, 's')} and the one without {quantity(free, 's')}, so the two ratios differ."
    )


def _refused(run: Any, share: float | None) -> str:
    refused = None if share is None else opened(run, "rejected_fraction", LIMITED, share)
    n, count = (
        None if share is None else value(opened(run, name, LIMITED, share)).middle
        for name in ("requests", "rejected")
    )
    got = value(refused).middle
    if got is None or got < 0 or n is None or count is None:
        return missing("the share that was refused").sentence
    formula = versus_prediction(1 - 1 / share, refused)
    said = (
        f"Of {number(n)} requests it refused {number(count)}{' on average' * (count % 1 > 0)}, "
        f"{percent(got)}. In a long test the share is "
        f"{percent(1 - 1 / share)}: {formula.verdict}"
    )
    predicted = value(opened(run, "predicted_rejected", LIMITED, share)).middle
    if predicted is not None:
        model = versus_prediction(predicted, refused)
        said += f". The model of this test, which begins with an empty server, says {percent(predicted)}: {model.verdict}"
    return f"{said}."


def _outcomes(run: Any) -> str:
    series = run["open_loop"]
    lost_by = [column(series, name) for name in ("failed", "timeout", "unsent")]
    if series is None or not all(lost_by):
        return missing("the outcome of each request").sentence
    lost = sum(value(x).middle or 0 for found in lost_by for x in found)
    if lost:
        return f"{number(abs(lost))} requests failed or were never sent, so the rates above leave something out."
    return "No request failed on either server."


def goodput_trend(run: Any) -> Finding:
    """Goodput without a limit from just below the knee on."""
    near = [s for s in shares(run, PAGED) if s > 0.8]
    return trend(near, [opened(run, "goodput", PAGED, s) for s in near], "requests/s")
