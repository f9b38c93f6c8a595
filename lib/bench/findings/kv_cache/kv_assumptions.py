"""What broke in chapter 2: what became of two assumptions about the time of a step.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None
where it has none.

Introduced in chapter 2.
"""

from typing import Any

from lib.bench.findings.kv_cache.kv_floor import floor_cause, floor_over_bound
from lib.bench.findings.kv_cache.kv_steps import (
    STEPS,
    fit,
    foretold,
    halving,
    overlaps,
    token_count,
)
from lib.bench.findings.kv_cache.kv_throughput import THROUGHPUT, gains, predicted_gains
from lib.bench.findings.values import column, number, value
from lib.bench.findings.vocabulary import missing, versus_prediction


def broke(run: Any, throughput_run: Any = None) -> dict[str, str]:
    """The two assumptions of this chapter's first version: that the fixed cost is starting, and that it hides arithmetic."""
    throughput_run = run if throughput_run is None else throughput_run
    cause = floor_cause(run)
    foretold_cause = (
        "The first version of this chapter attributed the fixed cost to starting operations wherever it was more than "
        "twice the bound."
    )
    times_bound = floor_over_bound(run)
    if times_bound is not None and times_bound <= 2:
        start = f"{foretold_cause} Here it is not, so that rule would have said nothing. {cause.sentence}"
    elif cause.kind == "products":
        start = f"{foretold_cause} On this machine that is wrong. {cause.sentence}"
    elif cause.kind == "around":
        start = f"{foretold_cause} On this machine that may be right. {cause.sentence}"
    else:
        start = f"{foretold_cause} {cause.sentence}"
    models, found = foretold(run), halving(run[STEPS])
    assumed = "That version took the larger of fixed cost and arithmetic on every machine."
    if not models or found.kind == "missing":
        second = f"{assumed} {missing('what that predicts').sentence}"
    else:
        at = models["larger"].factor_at(2)
        verdict = (
            versus_prediction(at, found.ratio, "tokens").text
            if found.kind == "at" and at
            else f"measured, it does so {found}"
        )
        second = f"{assumed} By that model the cache halves the time of a step here at {token_count(at)}; {verdict}."
        middle = len(gains(throughput_run)) // 2
        old = predicted_gains(throughput_run, run, "larger")
        measured = gains(throughput_run)
        if measured and old[middle] and value(measured[middle]).known:
            over = number(column(throughput_run[THROUGHPUT], "generated")[middle])
            second += f" For the gain over {over} tokens, {versus_prediction(old[middle], measured[middle], '×')}."
    fitted = fit(run)
    return {
        "broke_cause_finding": start,
        "broke_model_finding": second + _lesson(fitted.kind, overlaps(run)),
    }


def _lesson(fitted: str, two_devices: bool) -> str:
    """What follows from the model that fits, where one processor does all the work and where a second one computes."""
    if fitted == "sum" and not two_devices:
        return (
            " Costs add where one processor does all the work. They overlap only where two "
            "devices work at the same time."
        )
    if fitted == "sum":
        return " On this machine the costs add, although a second device computes."
    if fitted == "larger" and not two_devices:
        return " On this machine the larger of the two is the better model after all."
    if fitted == "larger":
        return " On this machine, where a second device computes, the larger of the two is right."
    return ""
