"""The server's options and its command line: LLM's arguments and its own. Introduced in chapter 5."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lib.core.engine_options import EngineOptions
from lib.serving.flags import add_flags


def _option(default: Any, help: str, **rules: Any) -> Any:
    """A field with its documentation. Rules: `choices`; `at_least` and `at_most` for a number."""
    return field(default=default, metadata={"help": help, **rules})


@dataclass
class ServerOptions:
    """Every option of the server, with its default. Raises ValueError, naming the option, out of its range.

    `llm`: the arguments of LLM, which are flags of the same names.
    """

    llm: dict[str, Any] = field(default_factory=dict, metadata={"internal": True})
    host: str = _option("127.0.0.1", "address to bind; the default is this machine only")
    port: int = _option(8000, "0 takes a free one and logs it", at_least=0, at_most=65535)
    served_model_name: str | None = _option(
        None, "what clients call the model (its name, or its folder's)", metavar="NAME"
    )
    max_concurrent_requests: int = _option(
        256, "sequences that may run or wait; beyond it 503", at_least=1, metavar="N"
    )
    request_timeout: float = _option(
        600.0, "seconds until 504; 0 is no limit", at_least=0, metavar="S"
    )
    drain_timeout: float = _option(
        30.0, "seconds that requests get to finish after SIGTERM", at_least=0, metavar="S"
    )
    max_body_bytes: int = _option(4 * 2**20, "largest body; beyond it 413", at_least=1, metavar="N")
    api_key: str | None = _option(
        None, "key to ask for on /v1, /generate and /engine (none)", metavar="KEY"
    )
    cors_origins: list[str] = field(
        default_factory=list,
        metadata={
            "help": "origin whose pages may call; may be repeated, * is any (none)",
            "flag": "cors-origin",
            "metavar": "ORIGIN",
        },
    )
    log_level: str = _option(
        "info", "least level that is logged", choices=("debug", "info", "warning", "error")
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            _check(option.name, getattr(self, option.name), option.metadata)
        if not self.served_model_name:
            # A folder's or file's name, not its path: clients need not know where the server keeps its models.
            model = self.llm.get("model", EngineOptions.model)
            path = Path(model)
            is_path = path.is_dir() or path.suffix == ".gguf"
            self.served_model_name = path.resolve().name if is_path else str(model)


def parse(arguments: Sequence[str] | None = None) -> ServerOptions:
    """The command line's options. Exits with a message and status 2 where they are not valid."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.serving",
        description="Serve a model over HTTP: OpenAI's protocol, and a page at /.",
        allow_abbrev=False,
    )
    engine = add_flags(
        parser.add_argument_group("engine", "the arguments of lib.LLM"), EngineOptions
    )
    add_flags(parser.add_argument_group("server"), ServerOptions)
    given = vars(parser.parse_args(arguments))
    llm = {name: given.pop(name) for name in engine}
    try:
        EngineOptions(**llm)
        return ServerOptions(llm=llm, **given)
    except ValueError as error:
        parser.error(str(error))


def _check(name: str, value: Any, rules: Any) -> None:
    if "choices" in rules and value not in rules["choices"]:
        raise ValueError(f"{name} must be one of {list(rules['choices'])}, got {value!r}")
    if "at_least" in rules:
        low, high = rules["at_least"], rules.get("at_most")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # Not a number (NaN) fails the first comparison, infinity the second.
        if (
            not is_number
            or not value >= low
            or value == float("inf")
            or (high is not None and value > high)
        ):
            limits = f">= {low}" if high is None else f">= {low} and <= {high}"
            raise ValueError(f"{name} must be {limits}, got {value!r}")
