"""A load test's results: for eyes, for a file, for a record, for a figure. Introduced in chapter 6."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.bench.measure.machine import fingerprint
from lib.bench.notebook.figures import figure, lines, log2_axis, save
from lib.bench.records.files import write_json
from lib.bench.records.record import Record
from lib.bench.records.series import Series
from lib.loadtest.request_trace import COMPLETED, OUTCOMES
from lib.loadtest.run import LoadRun
from lib.loadtest.stats import ENOUGH, QUANTILES, summarize

SCHEMA = 1
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
    """Which load it was: "8 users", or "12 requests/s poisson"."""
    config = run.config
    if config["mode"] == "closed":
        return f"{config['concurrency']} user{'s' if config['concurrency'] > 1 else ''}"
    kind = config.get("arrivals", "arrivals")
    rate = config.get("rate") or config.get("offered_rate")
    return f"{kind} at {rate:.3g} requests/s" if rate else kind


def text_report(run: LoadRun, slo: Mapping[str, float] | None = None) -> str:
    """Everything that a terminal should show, several lines."""
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
            f"  {s['tokens_per_chunk']:.1f} tokens a chunk: ITL is a time between chunks, not tokens"
        )
    if s["lagged"]:
        rows.append(
            "  THE GENERATOR LAGGED: it sent requests or noted tokens late, so these times are partly its own"
        )
    return "\n".join(rows)


def to_json(runs: Sequence[LoadRun], slo: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Plain data: what was asked, the summary, every request's raw times, the gauges, and the generator's machine."""
    return {
        "schema": SCHEMA,
        "fingerprint": fingerprint(None),
        "runs": [
            {
                "name": name_of(run),
                "config": run.config,
                "problem": run.problem,
                "summary": summarize(run, slo),
                "requests": [trace.to_json() for trace in run.traces],
                "gauges": run.gauges,
                "warmup": [trace.to_json() for trace in run.warmup],
            }
            for run in runs
        ],
    }


def save_json(path: Path, runs: Sequence[LoadRun], slo: Mapping[str, float] | None = None) -> None:
    """Raises OSError where it cannot be written."""
    write_json(path, to_json(runs, slo))


def add_to_record(
    record: Record,
    name: str,
    runs: Sequence[LoadRun],
    *,
    slo: Mapping[str, float] | None = None,
    params: Mapping[str, Any] | None = None,
    **labels: Sequence[Any],
) -> Series:
    """One row a run: counts, rates and percentiles, beside `labels` (a column each, one value a run)."""
    points = []
    for i, run in enumerate(runs):
        s = summarize(run, slo)
        row: dict[str, Any] = {column: values[i] for column, values in labels.items()}
        row |= {
            key: s[key]
            for key in (
                "requests",
                *OUTCOMES,
                "duration",
                "request_throughput",
                "output_throughput",
                "goodput",
                "rejected_fraction",
                "mean_in_flight",
                "lagged",
            )
        }
        row |= {
            f"{time}_{q}": s[time][q]
            for time in ("ttft", "ttft_sent", "tpot", "itl", "e2e", "e2e_sent", "lag")
            for q in ("mean", "p50", "p90", "p95", "p99")
        }
        row |= {
            f"{gauge}_{kind}": s["gauges"].get(gauge, {}).get(kind)
            for gauge in (
                "running",
                "waiting",
                "kv_cache",
                "gpu",
                "gpu_memory",
                "cpu",
                "generator_cpu",
            )
            for kind in ("mean", "peak")
        }
        points.append(row)
    note = f"percentiles over the completed requests; a p99 of fewer than {ENOUGH} is indicative"
    return record.add(
        name,
        unit="see columns: s, requests/s, tokens/s",
        points=points,
        params={**(params or {}), "slo": None if slo is None else dict(slo), "note": note},
    )


def save_figure(path: Path, runs: Sequence[LoadRun]) -> None:
    """Throughput and latency against the load; for a single run, the distribution of its latencies."""
    done = [run for run in runs if any(trace.completed for trace in run.traces)]
    if not done:
        raise ValueError("no request was completed: there is nothing to draw")
    if len(done) == 1:
        fig, ax = figure()
        times = {
            "TTFT": [t.ttft for t in done[0].traces if t.completed],
            "E2E": [t.e2e for t in done[0].traces if t.completed],
        }
        for i, (name, samples) in enumerate(times.items()):
            share = [(k + 1) / len(samples) for k in range(len(samples))]
            ax.plot(sorted(samples), share, drawstyle="steps-post", color=f"C{i}", label=name)
        ax.set(xlabel="seconds since the request was due", ylabel="share of requests", ylim=(0, 1))
        fig.legend(loc="outside upper left", ncols=2)
    else:
        closed = done[0].config["mode"] == "closed"
        x = [
            run.config["concurrency"] if closed else run.config["offered_rate"] or 0 for run in done
        ]
        rows = [summarize(run) for run in done]
        fig, (left, right) = figure(2)
        lines(left, x, {"throughput": [row["output_throughput"] for row in rows]})
        lines(
            right,
            x,
            {
                f"{name} {q}": [row[key][q] for row in rows]
                for name, key in (("TTFT", "ttft"), ("E2E", "e2e"))
                for q in ("p50", "p95")
            },
        )
        for ax, label in ((left, "output tokens/s"), (right, "seconds")):
            ax.set(xlabel="users" if closed else "offered requests/s", ylabel=label, ylim=(0, None))
            if closed:
                log2_axis(ax, "x")
    save(fig, path)
