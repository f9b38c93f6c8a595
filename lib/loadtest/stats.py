"""The arithmetic of a load test: rates, percentiles and goodput from raw times. No clock, no network. Introduced in chapter 6.

Defined as in `vllm bench serve`: percentiles are linear between samples (`lib.bench.measure.percentiles`), TPOT leaves out answers of one token,
throughput divides by the time from the start to the end of the last request. Times here start when a request was due;
those that start when it was sent, as vLLM's do, have `_sent` in their name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lib.bench.measure.percentiles import percentile
from lib.loadtest.request_trace import OUTCOMES, REJECTED, RequestTrace
from lib.loadtest.run import LoadRun

QUANTILES = (50, 90, 95, 99)
ENOUGH = 100  # samples; with fewer, a p99 is little more than the maximum
# A run lags if a percentile of its lag exceeds a tenth of the same percentile of its TTFT, and 5 ms. A percentile of
# fewer samples than it needs (a p99: 100) is the largest of them, and one late wake-up of a dozen says nothing of a run.
LAG_SHARE, LAG_FLOOR = 0.1, 0.005
SLOS = ("ttft", "tpot", "e2el")


def distribution(samples: Sequence[float]) -> dict[str, Any]:
    """n, mean, min, max, p50 … p99 in the samples' unit; None without samples. indicative: p99 rests on n < 100."""
    if not samples:
        return {
            "n": 0,
            "mean": None,
            "min": None,
            "max": None,
            **{f"p{q}": None for q in QUANTILES},
            "indicative": True,
        }
    ordered = sorted(samples)
    return {
        "n": len(ordered),
        "mean": sum(ordered) / len(ordered),
        "min": ordered[0],
        "max": ordered[-1],
        **{f"p{q}": percentile(ordered, q) for q in QUANTILES},
        "indicative": len(ordered) < ENOUGH,
    }


def is_good(trace: RequestTrace, slo: Mapping[str, float]) -> bool:
    """Completed, and within every limit (seconds; a limit met exactly is met). An answer of one token has TPOT 0."""
    times = {"ttft": trace.ttft, "tpot": trace.tpot or 0.0, "e2el": trace.e2e}
    return trace.completed and all(times[name] <= limit for name, limit in slo.items())


def check_slo(slo: Mapping[str, float]) -> dict[str, float]:
    """`slo` as a dict. Raises ValueError for names other than ttft, tpot, e2el, and for limits that are not above 0."""
    for name, limit in slo.items():
        if name not in SLOS:
            raise ValueError(f"an SLO must be for one of {', '.join(SLOS)}, got {name!r}")
        if not limit > 0:
            raise ValueError(f"the SLO for {name} must be > 0 seconds, got {limit}")
    return dict(slo)


def summarize(run: LoadRun, slo: Mapping[str, float] | None = None) -> dict[str, Any]:
    """One flat row of counts and rates, and one distribution for each kind of time. Rates are per second, times in seconds.

    slo: limits in seconds, e.g. {"ttft": 0.5, "tpot": 0.05}. goodput is None without one.
    """
    traces, done = run.traces, [trace for trace in run.traces if trace.completed]
    ended = [trace for trace in traces if trace.end is not None]
    duration = max((trace.end for trace in ended), default=0.0)
    per_second = lambda count: count / duration if duration else 0.0  # noqa: E731
    outcomes = {outcome: sum(trace.outcome == outcome for trace in traces) for outcome in OUTCOMES}
    output = sum(trace.output_tokens for trace in done)
    chunks = sum(len(trace.chunks) for trace in done)
    times = {
        "ttft": [trace.ttft for trace in done],
        "ttft_sent": [trace.ttft_sent for trace in done],
        "tpot": [trace.tpot for trace in done if trace.tpot is not None],
        "itl": [gap for trace in done for gap in trace.gaps],
        "e2e": [trace.e2e for trace in done],
        "e2e_sent": [trace.e2e_sent for trace in done],
        "wait": [trace.wait for trace in traces if trace.sent is not None],
        "lag": [trace.lag for trace in traces if trace.sent is not None],
        "loop_lag": run.lateness,
    }
    spread = {name: distribution(samples) for name, samples in times.items()}
    good = None if slo is None else sum(is_good(trace, check_slo(slo)) for trace in done)
    return {
        "requests": len(traces),
        **outcomes,
        "rejected_fraction": outcomes[REJECTED] / len(traces) if traces else 0.0,
        "duration": duration,
        "request_throughput": per_second(len(done)),
        "output_throughput": per_second(output),
        "total_token_throughput": per_second(
            output + sum(trace.prompt_tokens or 0 for trace in done)
        ),
        "output_tokens": output,
        "tokens_per_chunk": output / chunks if chunks else None,
        "counted": all(trace.counted for trace in done),
        "slo": None if slo is None else dict(slo),
        "good": good,
        "goodput": None if good is None else per_second(good),
        # Little's law: the mean number of requests in the server is their summed time there over the duration.
        "mean_in_flight": per_second(sum(trace.end - trace.sent for trace in ended)),
        "lagged": _lagged(spread),
        **spread,
        "gauges": _gauges(run.gauges),
        "problem": run.problem,
    }


def _lagged(spread: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the generator itself may have caused these times: requests sent late, or tokens noted late."""
    return any(
        (spread[name][f"p{q}"] or 0.0)
        > max(LAG_FLOOR, LAG_SHARE * (spread["ttft"][f"p{q}"] or 0.0))
        for name in ("lag", "loop_lag")
        for q in QUANTILES
        if q == 50 or spread[name]["n"] * (100 - q) >= 100
    )


def _gauges(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and peak of each gauge over its samples; a gauge without a value is left out."""
    result: dict[str, Any] = {}
    for name in samples[0] if samples else ():
        values = [sample[name] for sample in samples if sample[name] is not None]
        if name != "t" and values:
            result[name] = {"mean": sum(values) / len(values), "peak": max(values)}
    return result
