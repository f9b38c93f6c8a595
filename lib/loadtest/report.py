"""A load test's results as text for a terminal. Introduced in chapter 6."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from lib.loadtest.request_trace import COMPLETED, OUTCOMES
from lib.loadtest.run import LoadRun
from lib.loadtest.stats import QUANTILES, summarize

_ERRORS = 10  # different ones that a terminal shows
_TIMES = (
    ("TTFT", "ttft"),
    ("  since sent", "ttft_sent"),
    ("TPOT", "tpot"),
    ("ITL (gaps)", "itl"),
    ("E2E", "e2e"),
    ("  since sent", "e2e_sent"),
    ("dispatch lag", "lag"),
)


def name_of(run: LoadRun) -> str:
    """The name of the load: "8 users", or "poisson at 12 requests/s"."""
    config = run.config
    if config["mode"] == "closed":
        return f"{config['concurrency']} user{'s' if config['concurrency'] > 1 else ''}"
    kind = config.get("arrivals", "arrivals")
    rate = config.get("rate") or config.get("offered_rate")
    return f"{kind} at {rate:.3g} requests/s" if rate else kind


def text_report(run: LoadRun, slo: Mapping[str, float] | None = None) -> str:
    """The report of one run: outcomes, errors, rates, latencies and the server's gauges, several lines."""
    s = summarize(run, slo)
    outcomes = ", ".join(
        f"{s[outcome]} {outcome}" for outcome in OUTCOMES if s[outcome] or outcome == COMPLETED
    )
    rows = [f"{name_of(run)}: {s['requests']} requests: {outcomes}"]
    if run.problem:
        rows.append(f"  ENDED EARLY: {run.problem}")
    errors = Counter(trace.error for trace in run.traces if trace.error)
    rows += [f"  {count} × {error}" for error, count in errors.most_common(_ERRORS)]
    if len(errors) > _ERRORS:
        rows.append(f"  and {len(errors) - _ERRORS} other errors")
    if s["completed"]:
        rows.append(
            f"  {s['output_throughput']:,.1f} output tokens/s, {s['request_throughput']:,.2f} requests/s over "
            f"{s['duration']:.2f} s; {s['mean_in_flight']:.1f} in flight on average"
        )
        if s["goodput"] is not None:
            limits = ", ".join(f"{name} {1e3 * limit:g} ms" for name, limit in s["slo"].items())
            rows.append(
                f"  goodput {s['goodput']:,.2f} requests/s: {s['good']} of {s['requests']} within {limits}"
            )
        rows.append(
            f"  {'ms':14}{'N':>7}{'mean':>10}" + "".join(f"{f'p{q}':>10}" for q in QUANTILES)
        )
        for label, name in _TIMES:
            d = s[name]
            if d["n"]:
                cells = "".join(
                    f"{1e3 * d[key]:10,.2f}" for key in ("mean", *(f"p{q}" for q in QUANTILES))
                )
                rows.append(
                    f"  {label:14}{d['n']:7}{cells}{' (p99 indicative)' if d['indicative'] else ''}"
                )
    for name, unit in (
        ("running", ""),
        ("waiting", ""),
        ("kv_cache", ""),
        ("gpu", " %"),
        ("cpu", " %"),
    ):
        if name in s["gauges"]:
            gauge = s["gauges"][name]
            rows.append(
                f"  server {name}: mean {gauge['mean']:.3g}{unit}, peak {gauge['peak']:.3g}{unit}"
            )
    if not s["counted"] and s["completed"]:
        rows.append("  the server gave no token counts: chunks were counted as tokens")
    elif s["tokens_per_chunk"] and s["tokens_per_chunk"] > 1.05:
        rows.append(
            f"  {s['tokens_per_chunk']:.1f} tokens per chunk: ITL is the time between chunks, not tokens"
        )
    if s["lagged"]:
        rows.append(
            "  THE GENERATOR LAGGED: it sent requests or noted tokens late, so these times are partly its own"
        )
    return "\n".join(rows)
