"""The fleet's options and its command line: the server's, and those of the replicas and the router.

Introduced in chapter 13.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from lib.core.engine_options import EngineOptions
from lib.serving.flags import add_flags
from lib.serving.fleet.routing import POLICIES, Router, make_router
from lib.serving.server_options import ServerOptions


def _option(default: Any, help: str, **rules: Any) -> Any:
    return field(default=default, metadata={"help": help, **rules})


@dataclass
class FleetOptions:
    """Every option of the fleet itself, with its default. Raises ValueError, naming the option, out of its range."""

    replicas: int = _option(2, "replicas at the start, and the least of them", metavar="N")
    max_replicas: int | None = _option(
        None, "replicas at most: more than --replicas scales with the load (none)", metavar="N"
    )
    target_requests: float = _option(16.0, "requests per replica that scaling aims at", metavar="N")
    policy: str = _option(
        "longest_prefix", "how a replica is chosen for a request", choices=POLICIES
    )
    min_match: int = _option(
        2, "blocks of a prompt that must be cached for longest_prefix to count", metavar="N"
    )
    max_imbalance: int = _option(
        8, "requests that the replica with the prefix may have more than another", metavar="N"
    )
    index_capacity: int = _option(
        100_000, "blocks that the router remembers for each replica", metavar="N"
    )
    max_queued: int = _option(
        64, "requests that wait at the router while all replicas are full; then 503", metavar="N"
    )
    cpus_per_replica: float = _option(1.0, "CPU cores, and so threads, of each", metavar="X")
    gpus_per_replica: float = _option(0.0, "GPUs of each", metavar="X")
    tries: int = _option(
        3, "replicas that a request is sent to, if they end before it has begun", metavar="N"
    )

    def __post_init__(self) -> None:
        least = {"replicas": 1, "min_match": 1, "max_imbalance": 0, "index_capacity": 1,
                 "max_queued": 1, "gpus_per_replica": 0, "tries": 1}  # fmt: skip
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise ValueError(f"{name} must be >= {low}, got {getattr(self, name)!r}")
        for name in ("target_requests", "cpus_per_replica"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)!r}")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas must be >= replicas={self.replicas}, got {self.max_replicas}"
            )
        if self.policy not in POLICIES:
            raise ValueError(f"policy must be one of {list(POLICIES)}, got {self.policy!r}")

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
