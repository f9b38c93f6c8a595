"""What broke in chapter 2: what became of two assumptions about the time of a step.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None
where it has none.

Introduced in chapter 2.
"""

from typing import Any

from lib.bench.findings.kv_cache.kv_floor import floor_cause
from lib.bench.findings.kv_cache.kv_steps import STEPS, fit, foretold, halving, token_count
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
    if cause.kind == "products":
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
    lesson = ""
    if fitted.kind == "sum":
        lesson = (
            " Costs add where one processor does all the work. They overlap only where two "
            "devices work at the same time."
        )
    elif fitted.kind == "larger":
        lesson = " On this machine the larger of the two is the better model after all."
    return {"broke_cause_finding": start, "broke_model_finding": second + lesson}
