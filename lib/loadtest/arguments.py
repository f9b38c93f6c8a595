"""The load generator's command line. Introduced in chapter 6."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib.loadtest.arrivals import ARRIVALS
from lib.loadtest.requests import WORKLOADS


def make_parser() -> argparse.ArgumentParser:
    """All flags, with their defaults."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.loadtest",
        description="Load any OpenAI-compatible server and report what it did.",
    )
    for group in (_server, _load, _requests, _output):
        group(parser.add_argument)
    return parser


def _server(add: Callable[..., Any]) -> None:
    add("--url", default="http://127.0.0.1:8000", help="the server (%(default)s)")
    add("--model", help="what the server calls the model (the first that it names)")
    add("--api-key", help="sent as a bearer token")
    add("--timeout", type=float, default=600.0, metavar="S", help="for one request (%(default)g)")
    add(
        "--stall-timeout",
        type=float,
        default=120.0,
        metavar="S",
        help="of silence, until the run ends (%(default)g)",
    )


def _load(add: Callable[..., Any]) -> None:
    add(
        "--mode",
        choices=("closed", "open"),
        default="closed",
        help="users who wait, or arrivals that do not",
    )
    add(
        "--concurrency",
        type=numbers(int),
        default=[1, 4, 8, 16, 32, 64, 128],
        metavar="N,N",
        help="closed: users",
    )
    add("--arrivals", choices=ARRIVALS, default="poisson", help="open: the pattern (%(default)s)")
    add("--rate", type=numbers(float), metavar="R,R", help="open: requests per second")
    add(
        "--burstiness",
        type=float,
        default=1.0,
        help="gamma arrivals: < 1 burstier than Poisson, > 1 steadier",
    )
    add(
        "--max-in-flight",
        type=number(int),
        metavar="N",
        help="open: requests beyond this number wait in the generator",
    )
    add(
        "--warmup",
        type=number(int, least=0),
        default=4,
        metavar="N",
        help="requests before each load that do not count (%(default)s)",
    )


def _requests(add: Callable[..., Any]) -> None:
    add("--workload", choices=WORKLOADS, default="short", help="prompt lengths (%(default)s)")
    add(
        "--num-requests",
        type=number(int),
        metavar="N",
        help="per load (4 per user and at least 16; open: 100)",
    )
    add(
        "--max-tokens",
        type=number(int),
        default=50,
        metavar="N",
        help="tokens per answer (%(default)s)",
    )
    add(
        "--vocab-size",
        type=number(int),
        default=1000,
        metavar="N",
        help="prompt ids are below (%(default)s)",
    )
    add("--text", action="store_true", help="prompts of words instead of token ids")
    add("--real-eos", action="store_true", help="answers may end early: ignore_eos is not sent")
    add("--seed", type=int, default=0)


def _output(add: Callable[..., Any]) -> None:
    add(
        "--goodput",
        nargs="+",
        type=slo,
        metavar="NAME:MS",
        help="SLOs, as vLLM: ttft:500 tpot:50 e2el:5000",
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


def number(kind: type, least: int | None = None) -> Callable[[str], Any]:
    """Reads one number that is above 0 and finite; `least=0` allows 0."""

    def convert(text: str) -> Any:
        value = kind(text)
        if not (0 < value < float("inf") or value == least):
            raise argparse.ArgumentTypeError(
                f"must be {'>= 0' if least == 0 else '> 0'} and finite, got {text}"
            )
        return value

    convert.__name__ = kind.__name__  # argparse names it where the text is no number at all
    return convert


def numbers(kind: type) -> Callable[[str], list[Any]]:
    """Reads numbers above 0, separated by commas."""

    def convert(text: str) -> list[Any]:
        return [number(kind)(part) for part in text.split(",")]

    convert.__name__ = kind.__name__
    return convert


def slo(text: str) -> tuple[str, float]:
    """Reads "ttft:500" as ("ttft", 0.5), in seconds."""
    name, _, milliseconds = text.partition(":")
    return name, float(milliseconds) / 1000
