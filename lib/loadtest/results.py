"""A load test's results as data: a JSON file with every raw time, or rows of a record. Introduced in chapter 6."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.loadtest.report import name_of
from lib.loadtest.request_trace import OUTCOMES
from lib.loadtest.run import LoadRun
from lib.loadtest.stats import ENOUGH, QUANTILES, summarize

if TYPE_CHECKING:  # a load test without a record starts without PyTorch
    from lib.bench.records.record import Record
    from lib.bench.records.series import Series

SCHEMA = 1


def to_json(runs: Sequence[LoadRun], slo: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Plain data: what was asked, the summary, every request's raw times, the gauges, and the generator's machine."""
    from lib.bench.measure.host import host_fingerprint

    return {
        "schema": SCHEMA,
        "fingerprint": host_fingerprint(),
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
    """Writes `to_json` to `path`. Raises OSError where that fails."""
    from lib.bench.records.json_file import write_json

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
    """Adds one row per run: counts, rates and percentiles, beside `labels` (one column each, one value per run)."""
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
            for q in ("mean", *(f"p{q}" for q in QUANTILES))
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
