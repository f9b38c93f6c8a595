"""A load test's results as a figure. Introduced in chapter 6."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lib.bench.notebook.figures import figure, lines, log2_axis, save
from lib.loadtest.run import LoadRun
from lib.loadtest.stats import summarize


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
