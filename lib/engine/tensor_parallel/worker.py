"""A rank other than 0: loads its part of the model, then runs the batches that rank 0 sends.

Started by `lib.engine.tensor_parallel.spawn` as `python -m lib.engine.tensor_parallel.worker`, with
its settings as one line of JSON on standard input. The end of that input is the end of rank 0.
Introduced in chapter 13.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
import warnings
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from lib.attention.choose import cached_attention
from lib.attention.full import FullAttention
from lib.cache.allocate import allocate
from lib.cache.kv_cache import KVCache
from lib.core.device import pick_dtype
from lib.core.engine_options import EngineOptions
from lib.engine.model_setup import prepare
from lib.engine.runner import ModelRunner
from lib.engine.tensor_parallel.group import Group, PeerLost
from lib.engine.tensor_parallel.messages import Command, Message, receive, to_batch
from lib.engine.tensor_parallel.rank_device import device_of
from lib.models.parallel.load import load_part
from lib.models.weight_bytes import weight_bytes

LOST_PEER = 3  # exit status of a rank that ends because another one did


def serve(
    store: dist.Store, rank: int, size: int, settings: dict[str, Any], host: str | None
) -> bool:
    """Run one engine's batches until rank 0 ends. Returns False if the connection broke.

    settings: those of `settings_of`. An exception leaves its traceback in the store, for rank 0.
    """
    try:
        options = EngineOptions(**settings["options"])
        device = device_of(torch.device(settings["device"]), settings["local_rank"])
        if device.type == "cuda":
            torch.cuda.set_device(device)
        group = Group(store, rank, size, device, host)
        worker = _Worker(options, device, group)
        group.connect()
        worker.run()
        return True
    except PeerLost:
        return False
    except BaseException:
        store.set(f"error/{rank}", traceback.format_exc())
        raise


class _Worker:
    """One rank's model, cache and attention; rank 0 decides what they do."""

    def __init__(self, options: EngineOptions, device: torch.device, group: Group) -> None:
        self.options, self.device, self.group = options, device, group
        self.dtype = pick_dtype(options.dtype, device)
        model = load_part(
            options.model,
            options.quantization,
            options.quantized_activations,
            device,
            self.dtype,
            group.rank,
            group.size,
            group,
        ).model
        prepare(model, options)
        self.runner = ModelRunner(model, FullAttention())
        self.kv_cache: KVCache | None = None

    def run(self) -> None:
        while (message := receive(self.group)).command != Command.STOP:
            self._obey(message)

    def _obey(self, message: Message) -> None:
        if message.command == Command.RUN:
            self.runner.run(to_batch(message, self.device))
        elif message.command == Command.ALLOCATE:
            config = self.runner.model.config
            num_blocks, block_size, *_ = message.numbers
            self.kv_cache = allocate(
                config, num_blocks, block_size, self.dtype, self.device, self.options.kv_cache_dtype
            )
            self.runner.attention = cached_attention(self.options, self.kv_cache, config)
        elif message.command == Command.CLEAN:
            self.kv_cache.remove_non_finite(message.payload.tolist(), message.numbers[1])
        elif message.command == Command.SIZES:
            cache = 0 if self.kv_cache is None else self.kv_cache.nbytes
            sizes = torch.tensor([weight_bytes(self.runner.model), cache], device=self.device)
            self.group.gather(sizes)


def settings_of(options: EngineOptions, device: torch.device, local_rank: int) -> dict[str, Any]:
    """What `serve` needs of an engine, as values that JSON has."""
    given = vars(replace(options, device=str(device), model=str(options.model)))
    dtype = str(options.dtype).removeprefix("torch.")
    return {
        "options": {**given, "dtype": dtype},
        "device": str(device),
        "local_rank": local_rank,
    }


def main() -> int:
    settings = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_rank_0, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for rank 0, which ends the others
    warnings.simplefilter("ignore")  # rank 0 has the same ones, and shows them
    torch.set_num_threads(settings["threads"])
    store = dist.TCPStore(settings["host"], settings["port"])
    try:
        ended = serve(store, settings["rank"], settings["size"], settings, settings["host"])
    except Exception:
        return 1  # rank 0 finds the traceback in the store
    return 0 if ended else LOST_PEER


def _end_with_rank_0() -> None:
    """Exit at the end of standard input, whatever this process is doing."""
    sys.stdin.read()
    os._exit(LOST_PEER)


if __name__ == "__main__":
    sys.exit(main())
