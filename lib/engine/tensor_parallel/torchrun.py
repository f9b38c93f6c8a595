"""Ranks that torchrun has started: `torchrun --nproc-per-node 2 -m lib.engine.tensor_parallel.torchrun script.py`.

Rank 0 runs the script (or, after -m, the module) with the arguments that follow, as Python would;
the others wait for the engines that it builds with tensor_parallel_size equal to the number of
ranks. On several machines torchrun's own options name the first one. Introduced in chapter 13.
"""

from __future__ import annotations

import json
import runpy
import sys
import time
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist

from lib.core.engine_options import EngineOptions
from lib.engine.tensor_parallel.worker import serve, settings_of

_AT_ONCE = timedelta(milliseconds=200)
_KEY = "token-by-token"


def launched_by_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return dist.is_torchelastic_launched()


class TorchrunRanks:
    """The other ranks of an engine in rank 0; torchrun watches and ends the processes.

    Raises ValueError unless this is rank 0 of `size` ranks, started by this module.
    """

    host = None

    def __init__(self, options: EngineOptions, device: torch.device, size: int) -> None:
        store, rank, there = next(dist.rendezvous("env://"))
        if there != size:
            raise ValueError(
                f"tensor_parallel_size must be {there}, the number of processes that torchrun has "
                f"started, got {size}"
            )
        if rank != 0:
            raise ValueError(
                "an engine is built by rank 0 only: start the script by "
                "torchrun ... -m lib.engine.tensor_parallel.torchrun script.py"
            )
        self.size = size
        store = dist.PrefixStore(_KEY, store)
        number = store.add("engines", 1)
        self.store = dist.PrefixStore(f"engine-{number}", store)
        store.set(f"settings-{number}", json.dumps(settings_of(options, device, 0)))

    def why_ended(self, patience: float = 0.0) -> str | None:
        """A rank's traceback, if one has failed; waits up to `patience` seconds for it."""
        deadline = time.monotonic() + patience
        while True:
            for rank in range(1, self.size):
                if self.store.check([f"error/{rank}"]):
                    text = self.store.get(f"error/{rank}").decode()
                    return f"rank {rank} failed:\n{text}"
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.05)

    def end(self) -> None:
        """The ranks go on to the next engine; they end with rank 0's script."""


def main(arguments: list[str]) -> int:
    if not launched_by_torchrun() or not arguments:
        print(f"usage: {__doc__.splitlines()[0].partition(': ')[2]}", file=sys.stderr)
        return 2
    store, rank, size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(_KEY, store)
    if rank != 0:
        return _wait_for_engines(store, rank, size)
    try:
        sys.argv = arguments
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        store.set("end", "")
    return 0


def _wait_for_engines(store: dist.Store, rank: int, size: int) -> int:
    warnings.simplefilter("ignore")  # rank 0 has the same ones, and shows them
    number = 1
    while True:
        if store.check([f"settings-{number}"]):
            settings = json.loads(store.get(f"settings-{number}"))
            settings["local_rank"] = dist.get_node_local_rank(rank)
            serve(dist.PrefixStore(f"engine-{number}", store), rank, size, settings, None)
            number += 1
        elif store.check(["end"]):
            return 0
        else:
            time.sleep(_AT_ONCE.total_seconds())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
