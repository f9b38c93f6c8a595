"""The sentences of chapter 1 about throughput as the answer grows, here and in a published run.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None
where it has none.

Introduced in chapter 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lib.bench.findings.curves import trend
from lib.bench.findings.run_notes import of_record
from lib.bench.findings.values import column, ends, number, percent, quantity, times, value
from lib.bench.findings.vocabulary import Finding, capital, missing, share

THROUGHPUT = "throughput_by_generated"


def throughput_trend(run: Any) -> Finding:
    """Throughput against the length of the answer."""
    series = run[THROUGHPUT]
    rates = column(series, "no_cache")
    # Rates with the spread of their repeats; a record may lack either column.
    for i, (samples, _) in enumerate(zip(column(series, "seconds"), rates)):
        spread = value(samples)
        if spread.count > 1 and spread.low > 0 and value(rates[i]).known:
            rates[i] = [value(rates[i]).middle * spread.middle / s for s in samples]
    return trend(column(series, "generated"), rates, "tokens/s")


def throughput(run: Any) -> dict[str, str]:
    """The sentences under the figures of throughput by generated tokens."""
    series = run[THROUGHPUT]
    generated, shape = column(series, "generated"), throughput_trend(run)
    if shape.kind == "missing" or not generated:
        first = missing("the throughput of a longer answer").sentence
    else:
        judged = {"falls": "as predicted", "cannot tell": "so the prediction is not judged"}
        verdict = judged.get(shape.kind, "so the prediction failed")
        over = f"As the answer grows from {number(generated[0])} to {number(generated[-1])} tokens, the throughput"
        first = f"{over} {shape}, {verdict}."
    used, once, read, memory = (
        value(ends(series, name)[1]).middle for name in ("arithmetic", "mfu", "mbu", "peak_mb")
    )
    ceilings = missing("the share of the ceilings").sentence
    alone = ceilings
    repeated = missing("the arithmetic of the longest run").sentence
    if None not in (used, once, read):
        ceilings = (
            f"In the longest run the machine did arithmetic at {percent(used)} of its ceiling, and read "
            f"weights at {percent(read)} of its bandwidth."
        )
        alone = (
            f"One sequence read weights at {percent(read)} of the bandwidth, and its useful arithmetic was "
            f"{percent(once)} of the ceiling."
        )
        if max(read, used) < 0.5:
            alone += " More than half of both ceilings is unused."
        elif max(read, once) < 0.5:
            alone += " Useful work takes less than half of either ceiling."
        if used > 0 and 0 < once <= used:
            again = share(used - once, used)
            repeated = (
                f"{capital(again.text)} of that arithmetic had been done before, one step earlier, for the same tokens: "
                f"it is {times(used / once)} what the answer needs."
            )
    return {
        "throughput_finding": of_record(run, first),
        "ceilings_finding": ceilings,
        "repeated_finding": repeated,
        "alone_finding": alone,
        "peak_finding": _peak(memory, on_gpu=value(ends(series, "gpu_busy")[1]).known),
    }


def _peak(megabytes: float | None, on_gpu: bool) -> str:
    if megabytes is None:
        return missing("peak memory").sentence
    if on_gpu:
        return f"Peak memory was {quantity(1e6 * megabytes, 'B')} of GPU memory."
    if megabytes < 1:
        return "The process did not grow while it ran: it reused memory that it held already, so this run has no peak to show."
    return f"Peak memory was {quantity(1e6 * megabytes, 'B')} on top of what the process held."


def published_curve(sweep: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """The published run's throughput by generated tokens: {"new_tokens": …, "tok_s": …}."""
    shape = trend(sweep["new_tokens"], sweep["tok_s"], "tokens/s", "{} tokens")
    said = f"On the published A100 the curve {shape}."
    if shape.kind == "peaks":
        said += (
            " Over a short sequence a pass there takes the time in which its operations are started, for any number "
            "of tokens; chapter 2 takes that time from another published table. A first, slow call would also count "
            "less as the run gets longer."
        )
    return {"published_finding": said}
