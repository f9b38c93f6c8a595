"""`python -m lib.loadtest --url http://127.0.0.1:8000 …`: load any OpenAI-compatible server. Introduced in chapter 6.

Exit status: 0 if every request was completed or refused for lack of room (429, 503), and at least one completed;
1 if any failed, timed out or was never sent, or a file could not be written; 2 for arguments that make no sense;
130 if interrupted. Whatever completed is reported in any case.

Starts without PyTorch and matplotlib; `--figure` and `--record` import them when the load is over.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from lib.loadtest.arguments import make_parser
from lib.loadtest.arrivals import arrival_times
from lib.loadtest.client import Target
from lib.loadtest.report import name_of, text_report
from lib.loadtest.request_trace import FAILED, TIMEOUT, UNSENT
from lib.loadtest.requests import make_requests
from lib.loadtest.results import add_to_record, save_json
from lib.loadtest.run import LoadRun, Watcher, closed_loop, open_loop
from lib.loadtest.stats import check_slo
from lib.loadtest.status_line import StatusLine


@dataclass(frozen=True)
class Load:
    """One load of a sweep: its name on the status line, how to run it, and what its results should say of it."""

    label: str
    start: Callable[[Target, Watcher], LoadRun]
    config: dict[str, Any]

    def run(self, target: Target, watcher: Watcher) -> LoadRun:
        run = self.start(target, watcher)
        run.config |= self.config
        return run


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status; argparse exits by itself with 2."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    try:
        target = Target(
            args.url, args.model, not args.real_eos, args.api_key, args.timeout, args.stall_timeout
        )
        slo = check_slo(dict(args.goodput)) if args.goodput else None
        loads = _loads(args)
        if args.model is None:
            target = replace(target, model=_served_model(target))
    except ValueError as error:
        parser.error(str(error))
    except (httpx.HTTPError, LookupError) as error:
        sys.stderr.write(
            f"{args.url}: cannot ask which model it serves: {error or type(error).__name__}\n"
            "Nothing was sent. Is the server up, and is this its URL? --model NAME skips the question.\n"
        )
        return 1
    runs: list[LoadRun] = []
    for load in loads:
        line = StatusLine(sys.stderr, load.label)
        run = load.run(target, line)
        line.close()
        runs.append(run)
        sys.stdout.write(text_report(run, slo) + "\n")
        sys.stdout.flush()
        if run.problem or run.interrupted:
            break
    if len(runs) < len(loads):
        sys.stdout.write(f"{len(loads) - len(runs)} of {len(loads)} loads were not begun.\n")
    written = _write(args, runs, slo)
    if any(run.interrupted for run in runs):
        return 130
    return 0 if written and len(runs) == len(loads) and all(map(_fine, runs)) else 1


def _fine(run: LoadRun) -> bool:
    return (
        run.problem is None
        and any(trace.completed for trace in run.traces)
        and not any(trace.outcome in (FAILED, TIMEOUT, UNSENT) for trace in run.traces)
    )


def _served_model(target: Target) -> str:
    """The first model that the server names. Raises httpx.HTTPError, or LookupError for an answer without one."""
    headers = {} if target.api_key is None else {"Authorization": f"Bearer {target.api_key}"}
    response = httpx.get(f"{target.base}/v1/models", headers=headers, timeout=10, trust_env=False)
    response.raise_for_status()
    try:
        return str(response.json()["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError):
        raise LookupError("/v1/models names no model") from None


def _loads(args: argparse.Namespace) -> list[Load]:
    """One Load per concurrency or rate, in the order asked for. Raises ValueError for arguments that do not fit."""
    if args.mode == "closed":
        return [_closed(args, level, args.seed + i) for i, level in enumerate(args.concurrency)]
    if args.arrivals == "burst" and args.rate:
        raise ValueError("--rate does not go together with --arrivals burst: they all come at once")
    return [_open(args, rate, args.seed + i) for i, rate in enumerate(args.rate or [None])]


def _closed(args: argparse.Namespace, users: int, seed: int) -> Load:
    made = _requests(args, args.num_requests or max(16, 4 * users), seed)
    warmup, requests = made[: args.warmup], made[args.warmup :]

    def start(target: Target, watcher: Watcher) -> LoadRun:
        return closed_loop(target, requests, users, warmup=warmup, watcher=watcher)

    return Load(f"{users} users", start, _config(args, seed))


def _open(args: argparse.Namespace, rate: float | None, seed: int) -> Load:
    made = _requests(args, args.num_requests or 100, seed)
    warmup, requests = made[: args.warmup], made[args.warmup :]
    times = arrival_times(
        args.arrivals, len(requests), rate=rate, burstiness=args.burstiness, seed=seed
    )

    def start(target: Target, watcher: Watcher) -> LoadRun:
        limit = args.max_in_flight
        return open_loop(
            target, requests, times, max_in_flight=limit, warmup=warmup, watcher=watcher
        )

    label = args.arrivals if rate is None else f"{args.arrivals} {rate:g}/s"
    arrivals = {"arrivals": args.arrivals, "rate": rate, "burstiness": args.burstiness}
    return Load(label, start, _config(args, seed) | arrivals)


def _requests(args: argparse.Namespace, n: int, seed: int) -> list[Any]:
    """The warm-up's requests and n more. Each load has a seed of its own, and so other prompts: a server that keeps
    prompts would answer the second load faster."""
    return make_requests(
        args.workload,
        args.warmup + n,
        max_tokens=args.max_tokens,
        vocab_size=args.vocab_size,
        text=args.text,
        seed=seed,
    )


def _config(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    return {"workload": args.workload, "max_tokens": args.max_tokens, "seed": seed}


def _write(args: argparse.Namespace, runs: list[LoadRun], slo: dict[str, float] | None) -> bool:
    """Writes the files asked for. False, with the reason on stderr, if one could not be written."""

    def save_figure(path: Path) -> None:
        from lib.loadtest.figure import save_figure

        save_figure(path, runs)

    def save_record(folder: Path) -> None:
        from lib.bench.records.record import Record

        model = runs[0].config["model"]
        record = Record("load", model=model, weights=args.weights, dtype=args.dtype, seed=args.seed)
        add_to_record(record, args.mode, runs, slo=slo, load=[name_of(run) for run in runs])
        record.save(folder)

    good = True
    for path, write in (
        (args.out, lambda path: save_json(path, runs, slo)),
        (args.figure, save_figure),
        (args.record, save_record),
    ):
        if path is not None:
            try:
                write(path)
            except (OSError, ValueError) as error:
                good = False
                sys.stderr.write(f"{path}: not written: {error}\n")
    return good
