"""`python -m lib.loadtest --url http://127.0.0.1:8000 …`: load any OpenAI-compatible server. Introduced in chapter 6.

Exit status: 0 if every request was completed or refused for lack of room (429, 503), and at least one completed;
1 if any failed, timed out or was never sent, or a file could not be written; 2 for arguments that make no sense;
130 if interrupted. Whatever completed is reported in any case.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from lib.bench.records.record import Record
from lib.loadtest.arrivals import ARRIVALS, arrival_times
from lib.loadtest.client import Target
from lib.loadtest.report import add_to_record, name_of, save_figure, save_json, text_report
from lib.loadtest.request_trace import FAILED, TIMEOUT, UNSENT
from lib.loadtest.requests import WORKLOADS, make_requests
from lib.loadtest.run import LoadRun, closed_loop, open_loop
from lib.loadtest.stats import check_slo
from lib.loadtest.status_line import StatusLine


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status; argparse exits by itself with 2."""
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        target = Target(
            args.url, args.model, not args.real_eos, args.api_key, args.timeout, args.stall_timeout
        )
        slo = check_slo(dict(args.goodput)) if args.goodput else None
        loads = _loads(args)
        if args.model is None:
            target = Target(**{**vars(target), "model": _served_model(target)})
    except ValueError as error:
        parser.error(str(error))
    except (httpx.HTTPError, LookupError) as error:
        sys.stderr.write(
            f"{args.url}: cannot ask which model it serves: {error or type(error).__name__}\n"
            "Nothing was sent. Is the server up, and is this its URL? --model NAME skips the question.\n"
        )
        return 1
    runs: list[LoadRun] = []
    for label, start in loads:
        line = StatusLine(sys.stderr, label)
        run = start(target, line)
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


def _loads(args: argparse.Namespace) -> list[tuple[str, Callable[[Target, StatusLine], LoadRun]]]:
    """One entry a load, in the order asked for. Raises ValueError for arguments that do not go together."""
    loads: list[tuple[str, Callable[[Target, StatusLine], LoadRun]]] = []
    levels = args.concurrency if args.mode == "closed" else (args.rate or [None])
    if args.mode == "open" and args.arrivals == "burst" and args.rate:
        raise ValueError("--rate does not go together with --arrivals burst: they all come at once")
    for i, level in enumerate(levels):
        n = args.num_requests or (max(16, 4 * level) if args.mode == "closed" else 100)
        # Other prompts at every level: a server that remembers prompts would answer the second level faster.
        made = make_requests(
            args.workload,
            n + args.warmup,
            max_tokens=args.max_tokens,
            vocab_size=args.vocab_size,
            text=args.text,
            seed=args.seed + i,
        )
        warmup, requests = made[: args.warmup], made[args.warmup :]
        extra: dict[str, Any] = {
            "workload": args.workload,
            "max_tokens": args.max_tokens,
            "seed": args.seed + i,
        }
        if args.mode == "closed":
            loads.append(
                (
                    f"{level} users",
                    lambda target, line, r=requests, w=warmup, c=level, e=extra: _noted(
                        closed_loop(target, r, c, warmup=w, watcher=line), e
                    ),
                )
            )
        else:
            times = arrival_times(
                args.arrivals, n, rate=level, burstiness=args.burstiness, seed=args.seed + i
            )
            extra |= {"arrivals": args.arrivals, "rate": level, "burstiness": args.burstiness}
            label = args.arrivals if level is None else f"{args.arrivals} {level:g}/s"
            loads.append(
                (
                    label,
                    lambda target, line, r=requests, w=warmup, t=times, e=extra: _noted(
                        open_loop(
                            target, r, t, max_in_flight=args.max_in_flight, warmup=w, watcher=line
                        ),
                        e,
                    ),
                )
            )
    return loads


def _noted(run: LoadRun, extra: dict[str, Any]) -> LoadRun:
    run.config |= extra
    return run


def _write(args: argparse.Namespace, runs: list[LoadRun], slo: dict[str, float] | None) -> bool:
    """Whatever files were asked for. False, with the reason said, if one could not be written."""

    def save_record(folder: Path) -> None:
        record = Record(
            "load",
            model=runs[0].config["model"],
            weights=args.weights,
            dtype=args.dtype,
            seed=args.seed,
        )
        add_to_record(record, args.mode, runs, slo=slo, load=[name_of(run) for run in runs])
        record.save(folder)

    good = True
    for path, write in (
        (args.out, lambda path: save_json(path, runs, slo)),
        (args.figure, lambda path: save_figure(path, runs)),
        (args.record, save_record),
    ):
        if path is not None:
            try:
                write(path)
            except (OSError, ValueError) as error:
                good = False
                sys.stderr.write(f"{path}: not written: {error}\n")
    return good


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lib.loadtest", description=__doc__.partition("\n")[0]
    )
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000", help="the server (%(default)s)")
    add("--model", help="what the server calls the model (the first that it names)")
    add("--api-key", help="sent as a bearer token")
    add(
        "--mode",
        choices=("closed", "open"),
        default="closed",
        help="users who wait, or arrivals that do not",
    )
    add(
        "--concurrency",
        type=_list(int),
        default=[1, 4, 8, 16, 32, 64, 128],
        metavar="N,N",
        help="closed: users",
    )
    add("--arrivals", choices=ARRIVALS, default="poisson", help="open: the pattern (%(default)s)")
    add("--rate", type=_list(float), metavar="R,R", help="open: requests a second")
    add(
        "--burstiness",
        type=float,
        default=1.0,
        help="gamma arrivals: < 1 burstier than Poisson, > 1 steadier",
    )
    add(
        "--max-in-flight",
        type=_list(int, one=True),
        metavar="N",
        help="open: more than these wait in the generator",
    )
    add("--workload", choices=WORKLOADS, default="short", help="prompt lengths (%(default)s)")
    add(
        "--num-requests",
        type=_list(int, one=True),
        metavar="N",
        help="a load (4 a user and at least 16; open: 100)",
    )
    add(
        "--max-tokens",
        type=_list(int, one=True),
        default=50,
        metavar="N",
        help="tokens an answer (%(default)s)",
    )
    add(
        "--vocab-size",
        type=_list(int, one=True),
        default=1000,
        metavar="N",
        help="prompt ids are below (%(default)s)",
    )
    add("--text", action="store_true", help="prompts of words instead of token ids")
    add("--real-eos", action="store_true", help="answers may end early: ignore_eos is not sent")
    add(
        "--warmup",
        type=_list(int, one=True, least=0),
        default=4,
        metavar="N",
        help="requests before each load that do not count (%(default)s)",
    )
    add("--seed", type=int, default=0)
    add(
        "--goodput",
        nargs="+",
        type=_slo,
        metavar="NAME:MS",
        help="SLOs, as vLLM: ttft:500 tpot:50 e2el:5000",
    )
    add("--timeout", type=float, default=600.0, metavar="S", help="for one request (%(default)g)")
    add(
        "--stall-timeout",
        type=float,
        default=120.0,
        metavar="S",
        help="of silence, until the run ends (%(default)g)",
    )
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="everything as JSON, each request's raw times included",
    )
    add("--figure", type=Path, metavar="FILE", help=".svg or .png")
    add("--record", type=Path, metavar="DIR", help="the summary as one of the book's records")
    add(
        "--weights", choices=("real", "random"), default="real", help="for the record (%(default)s)"
    )
    add("--dtype", default="float32", help="for the record (%(default)s)")
    return parser


def _list(kind: type, one: bool = False, least: int | None = None) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        values = [kind(part) for part in ([text] if one else text.split(","))]
        if not all(0 < value < float("inf") or value == least for value in values):
            raise argparse.ArgumentTypeError(
                f"must be {'>= 0' if least == 0 else '> 0'} and finite, got {text}"
            )
        return values[0] if one else values

    convert.__name__ = kind.__name__  # argparse names it where the text is no number at all
    return convert


def _slo(text: str) -> tuple[str, float]:
    name, _, milliseconds = text.partition(":")
    return name, float(milliseconds) / 1000


if __name__ == "__main__":
    sys.exit(main())
