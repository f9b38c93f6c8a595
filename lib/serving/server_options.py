"""The command line: LLM's arguments and the server's own. Introduced in chapter 5."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class ServerOptions:
    """`llm`: keyword arguments of LLM. Times are in seconds; request_timeout None is no limit."""

    llm: dict[str, Any] = field(default_factory=dict)
    served_model_name: str = "smollm2"
    host: str = "127.0.0.1"
    port: int = 8000
    max_concurrent_requests: int = 256
    request_timeout: float | None = 600.0
    drain_timeout: float = 30.0
    max_body_bytes: int = 4 * 2**20
    api_key: str | None = None
    cors_origins: list[str] = field(default_factory=list)
    log_level: str = "info"


def parse(arguments: Sequence[str] | None = None) -> ServerOptions:
    """Exits with a message and status 2 where arguments make no sense."""
    args = vars(_parser().parse_args(arguments))
    names = {action.dest for action in _llm_group(argparse.ArgumentParser())._group_actions}
    llm = {name: args.pop(name) for name in names}
    # A folder's name, not its path: clients need not know where the server keeps its models.
    served = args.pop("served_model_name") or (
        Path(llm["model"]).resolve().name if Path(llm["model"]).is_dir() else llm["model"]
    )
    return ServerOptions(llm=llm, served_model_name=served, **args)


def _llm_group(parser: argparse.ArgumentParser) -> Any:
    group = parser.add_argument_group("engine", "the arguments of lib.LLM")
    add = group.add_argument
    add(
        "--model",
        default="smollm2",
        help="smollm2, gpt2, a Hugging Face id or a checkpoint folder (%(default)s)",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    add("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (%(default)s)")
    # Their choices are the engine's to check: it knows what goes together.
    add("--kv-cache", default="paged", help="none, contiguous or paged (%(default)s)")
    add(
        "--attention",
        default="auto",
        help="auto, gather or fused: how the paged cache is read (%(default)s)",
    )
    add(
        "--linear",
        default="auto",
        help="plain, packed or auto: how the weights lie in memory (%(default)s)",
    )
    add(
        "--compile", action="store_true", help="torch.compile what lies between the matrix products"
    )
    add(
        "--cuda-graphs",
        action="store_true",
        help="record decode steps and replay them (CUDA, fused attention)",
    )
    add("--scheduler", default="continuous", help="continuous or static (%(default)s)")
    add("--max-num-seqs", type=int, default=64, help="sequences in a step (%(default)s)")
    add("--max-num-batched-tokens", type=int, default=2048, help="tokens in a step (%(default)s)")
    add(
        "--max-model-len",
        type=int,
        help="longest prompt + output in tokens (the model's, or what fits)",
    )
    add("--block-size", type=int, default=16, help="tokens in a block (%(default)s)")
    add("--num-blocks", type=int, help="blocks in the pool (what fits into memory)")
    add(
        "--kv-cache-memory-bytes",
        type=int,
        help="the pool's size in bytes, instead of --num-blocks",
    )
    add(
        "--enable-prefix-caching",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep the blocks of the paged cache and find them again by their content",
    )
    return group


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lib.serving",
        description="Serve a model over HTTP: OpenAI's protocol, and a page at /.",
    )
    _llm_group(parser)
    add = parser.add_argument_group("server").add_argument
    add("--host", default="127.0.0.1", help="address to bind (%(default)s: this machine only)")
    add(
        "--port",
        type=_within(int, 0, 65535),
        default=8000,
        help="0 takes a free one and logs it (%(default)s)",
    )
    add("--served-model-name", help="what clients call the model (its name, or its folder's)")
    add(
        "--max-concurrent-requests",
        type=_within(int, 1),
        default=256,
        metavar="N",
        help="sequences that may run or wait; beyond it 503 (%(default)s)",
    )
    add(
        "--request-timeout",
        type=_within(float, 0, least_is_none=True),
        default=600.0,
        metavar="S",
        help="seconds until 504; 0 is no limit (%(default)g)",
    )
    add(
        "--drain-timeout",
        type=_within(float, 0),
        default=30.0,
        metavar="S",
        help="seconds that requests get to finish after SIGTERM (%(default)g)",
    )
    add(
        "--max-body-bytes",
        type=_within(int, 1),
        default=4 * 2**20,
        help="beyond it 413 (%(default)s)",
    )
    add("--api-key", help="ask for it on /v1, /generate and /engine")
    add(
        "--cors-origin",
        action="append",
        default=[],
        dest="cors_origins",
        metavar="ORIGIN",
        help="let pages of this origin call; may be repeated, * is any",
    )
    add("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    return parser


def _within(kind: type, low: float, high: float | None = None, least_is_none: bool = False) -> Any:
    def convert(text: str) -> Any:
        value = kind(text)
        if not value >= low or (high is not None and value > high) or value == float("inf"):
            raise argparse.ArgumentTypeError(
                f"must be >= {low}{'' if high is None else f' and <= {high}'}, got {text}"
            )
        return None if least_is_none and value == low else value

    convert.__name__ = kind.__name__  # argparse names it where the text is no number at all
    return convert
