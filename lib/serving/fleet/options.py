"""The fleet's options and its command line: the server's, and those of the replicas and the router.

Introduced in chapter 13.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any

from lib.core.engine_options import EngineOptions
from lib.serving.flags import add_flags
from lib.serving.fleet.routing import POLICIES, Router, make_router
from lib.serving.server_options import ServerOptions


def _option(default: Any, help: str, **rules: Any) -> Any:
    """A field with its documentation. Rules: `choices`; `at_least` or `above`, and `only` where it has a meaning."""
    return field(default=default, metadata={"help": help, **rules})


@dataclass
class FleetOptions:
    """Every option of the fleet itself, with its default.

    Raises ValueError, naming the option, for a value out of its range and for one that would have no effect.
    """

    replicas: int = _option(2, "replicas at the start, and the least of them", at_least=1)
    max_replicas: int | None = _option(
        None, "replicas at most: more than --replicas scales with the load (none)", at_least=1
    )
    target_requests: float = _option(
        16.0, "requests per replica that scaling aims at", above=0, only="max_replicas"
    )
    upscale_delay: float = _option(
        30.0,
        "seconds of a higher load before a replica is added",
        at_least=0,
        only="max_replicas",
        metavar="S",
    )
    downscale_delay: float = _option(
        600.0,
        "seconds of a lower load before one is drained",
        at_least=0,
        only="max_replicas",
        metavar="S",
    )
    policy: str = _option(
        "longest_prefix", "how a replica is chosen for a request", choices=POLICIES
    )
    min_match: int = _option(
        2,
        "blocks of a prompt that must be cached for longest_prefix to count",
        at_least=1,
        only="longest_prefix",
    )
    max_imbalance: int = _option(
        8,
        "requests that the replica with the prefix may have more than another",
        at_least=0,
        only="longest_prefix",
    )
    index_capacity: int = _option(
        100_000,
        "blocks that the router remembers for each replica",
        at_least=1,
        only="longest_prefix",
    )
    max_queued: int = _option(
        64, "requests that wait at the router while all replicas are full; then 503", at_least=1
    )
    cpus_per_replica: float = _option(
        1.0, "CPU cores, and so threads, of each", above=0, metavar="X"
    )
    gpus_per_replica: float = _option(0.0, "GPUs of each", at_least=0, metavar="X")
    tries: int = _option(
        3, "replicas that a request is sent to, if they end before it has begun", at_least=1
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            self._check(option)
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas must be >= replicas={self.replicas}, got {self.max_replicas}"
            )

    def _check(self, option: Field) -> None:
        name, value, rules = option.name, getattr(self, option.name), option.metadata
        if "choices" in rules:
            if value not in rules["choices"]:
                raise ValueError(f"{name} must be one of {list(rules['choices'])}, got {value!r}")
            return
        if value is None and option.default is None:
            return
        low, strict = rules.get("at_least", rules.get("above")), "above" in rules
        kind = float if isinstance(option.default, float) else int
        is_number = isinstance(value, int | kind) and not isinstance(value, bool)
        # Infinity and NaN are numbers that are not finite.
        if not (is_number and math.isfinite(value) and (value > low if strict else value >= low)):
            noun = "an integer" if kind is int else "a number"
            raise ValueError(
                f"{name} must be {noun} {'>' if strict else '>='} {low}, got {value!r}"
            )
        needed = rules.get("only")
        if value != option.default and needed == "max_replicas" and not self.scales:
            raise ValueError(
                f"{name} must be {option.default} unless max_replicas > replicas, got {value!r}"
            )
        if value != option.default and needed == "longest_prefix" != self.policy:
            raise ValueError(
                f"{name} must be {option.default} unless policy is {needed!r}, got {value!r}"
            )

    @property
    def scales(self) -> bool:
        """Whether the number of replicas follows the load."""
        return self.max_replicas is not None and self.max_replicas > self.replicas

    @property
    def router_options(self) -> dict[str, Any]:
        """The arguments of `make_router`."""
        if self.policy != "longest_prefix":
            return {"policy": self.policy}
        return {"policy": self.policy, "min_match": self.min_match,
                "max_imbalance": self.max_imbalance, "capacity": self.index_capacity}  # fmt: skip

    def router(self) -> Router:
        return make_router(**self.router_options)


def parse(arguments: Sequence[str] | None = None) -> tuple[FleetOptions, ServerOptions]:
    """The command line's options. Exits with a message and status 2 where they are not valid."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.serving.fleet",
        description="Serve a model with several replicas behind one address, on Ray Serve.",
        allow_abbrev=False,
    )
    engine = add_flags(
        parser.add_argument_group("engine", "the arguments of lib.LLM"), EngineOptions
    )
    server = add_flags(parser.add_argument_group("server", "of each replica"), ServerOptions)
    add_flags(parser.add_argument_group("fleet"), FleetOptions)
    given = vars(parser.parse_args(arguments))
    try:
        return from_mapping(given, engine, server)
    except ValueError as error:
        parser.error(str(error))


def from_mapping(
    given: Mapping[str, Any],
    engine: Sequence[str] | None = None,
    server: Sequence[str] | None = None,
) -> tuple[FleetOptions, ServerOptions]:
    """Both from one mapping of names, as a serve config file has them. Raises ValueError for an unknown name or a bad value.

    engine, server: the names that belong to each; all names of their classes where they are left out.
    """
    engine = [f.name for f in fields(EngineOptions)] if engine is None else engine
    server = [f.name for f in fields(ServerOptions) if f.name != "llm"] if server is None else server  # fmt: skip
    fleet = [f.name for f in fields(FleetOptions)]
    unknown = sorted(set(given) - {*engine, *server, *fleet})
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no such option")
    llm = {name: given[name] for name in engine if name in given}
    EngineOptions(**llm)
    own = FleetOptions(**{name: given[name] for name in fleet if name in given})
    return own, ServerOptions(llm=llm, **{name: given[name] for name in server if name in given})
