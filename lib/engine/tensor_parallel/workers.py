"""Rank 0's side: tells the other ranks what to do, and notices when one of them ends. Introduced in chapter 13."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import wait
from typing import TypeVar

import numba
import torch
from torch import Tensor

from lib.cache.allocate import kv_bytes_per_token
from lib.core.batch import Batch
from lib.core.engine_options import EngineOptions
from lib.core.errors import EngineDeadError
from lib.engine.tensor_parallel.command_thread import CommandThread
from lib.engine.tensor_parallel.group import Group, PeerLost
from lib.engine.tensor_parallel.messages import Command, Message, of_batch, send
from lib.engine.tensor_parallel.rank_device import check_devices
from lib.engine.tensor_parallel.spawn import SpawnedRanks
from lib.engine.tensor_parallel.torchrun import TorchrunRanks, launched_by_torchrun
from lib.models.checkpoint import LoadedModel
from lib.models.parallel.load import load_part
from lib.models.parallel.shard import shard_of

_T = TypeVar("_T")
_POLL = 0.5  # seconds between two looks at the processes while a pass runs
_PATIENCE = 3.0  # seconds in which a rank's end explains a lost connection


class Workers:
    """The ranks beside rank 0. Every method that reaches them raises EngineDeadError once one has ended.

    Each command runs in one thread of its own, with the number of threads that is rank 0's share
    of PyTorch's: an interrupt (KeyboardInterrupt) stops the caller from waiting, but never a command
    halfway, after which the ranks would wait for different things.
    """

    def __init__(self, options: EngineOptions, device: torch.device) -> None:
        self.size, self.device = options.tensor_parallel_size, device
        self._dead: str | None = None
        self._failure: BaseException | None = None
        total = torch.get_num_threads()
        if launched_by_torchrun():
            self.ranks: SpawnedRanks | TorchrunRanks = TorchrunRanks(options, device, self.size)
            self.threads = total
        else:
            check_devices(device, self.size)
            self.threads = max(1, total // self.size)
            self.ranks = SpawnedRanks(options, device, self.size, self.threads)
        self._end = weakref.finalize(self, self.ranks.end)  # at exit, too
        self.group = Group(self.ranks.store, 0, self.size, device, self.ranks.host)
        self._thread = CommandThread("rank-0")
        self._thread.submit(self._prepare_thread).result()
        # The call in the thread is for that thread, and for threads yet to come: not for those.
        torch.set_num_threads(total)

    def _prepare_thread(self) -> None:
        # First Numba: when it starts its threads, it overwrites PyTorch's number in the calling one.
        numba.set_num_threads(min(self.threads, numba.config.NUMBA_NUM_THREADS))
        torch.get_num_threads()  # a thread's first call of it would undo the next line later
        torch.set_num_threads(self.threads)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def load(self, options: EngineOptions, dtype: torch.dtype) -> LoadedModel:
        """Rank 0's part of the model; its `config` is the whole model's. Errors as `load_part`."""
        loaded = load_part(
            options.model,
            options.quantization,
            options.quantized_activations,
            self.device,
            dtype,
            0,
            self.size,
            self.group,
        )
        self._config = loaded.config
        return loaded

    def kv_bytes_per_token(self, kv_cache_dtype: str, dtype: torch.dtype) -> int:
        """Bytes that one token leaves in the other ranks' caches, as far as they share rank 0's memory."""
        if (
            self.device.type == "cuda"
        ):  # each has a device of its own, and no larger part than rank 0
            return 0
        shards = [shard_of(self._config, rank, self.size) for rank in range(1, self.size)]
        return sum(kv_bytes_per_token(s.local_config, kv_cache_dtype, dtype) for s in shards)

    def run(self, batch: Batch, forward: Callable[[Batch], Tensor]) -> Tensor:
        """Logits [N, V] of `forward(batch)`, which all ranks run together."""

        def work() -> Tensor:
            send(self.group, of_batch(batch))
            logits = forward(batch)
            if self.device.type == "cuda":  # a kernel of NCCL would wait for a dead rank for ever
                torch.cuda.synchronize(self.device)
            return logits

        return self._call(work)

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Give the other ranks a KV cache for the same blocks."""
        message = Message(Command.ALLOCATE, (num_blocks, block_size))
        self._call(lambda: send(self.group, message))

    def remove_non_finite(self, block_ids: list[int], num_tokens: int) -> None:
        """`KVCache.remove_non_finite` in the other ranks."""
        blocks = torch.tensor(block_ids, dtype=torch.int32)
        message = Message(Command.CLEAN, (len(block_ids), num_tokens), blocks)
        if block_ids:
            self._call(lambda: send(self.group, message))

    def sizes(self) -> list[tuple[int, int]]:
        """(bytes of weights, bytes of KV cache) of ranks 1 to size - 1."""

        def work() -> list[Tensor]:
            send(self.group, Message(Command.SIZES))
            return self.group.gather(torch.zeros(2, dtype=torch.int64, device=self.device))

        return [tuple(sizes.tolist()) for sizes in self._call(work)[1:]]

    def close(self) -> None:
        """End the other ranks. Later calls of other methods raise EngineDeadError."""
        if self._dead is None:
            self._dead = "the engine has been closed"
            if self._failure is None and self.group.connected:
                stopping = self._thread.submit(lambda: send(self.group, Message(Command.STOP)))
                wait([stopping], timeout=_PATIENCE)
        self._end()
        self._thread.stop()

    def _call(self, work: Callable[[], _T]) -> _T:
        if self._dead is not None:
            raise EngineDeadError(self._dead)

        def guarded() -> _T:
            if self._failure is not None:  # of a command whose caller was interrupted
                raise self._failure
            try:
                self.group.connect()
                return work()
            except BaseException as error:
                self._failure = error
                raise

        future = self._thread.submit(guarded)
        while not wait([future], timeout=_POLL).done:
            if (reason := self.ranks.why_ended()) is not None:
                wait([future], timeout=_PATIENCE)  # gloo mostly notices by itself, NCCL does not
                if not future.done():
                    self.group.abort()
                    raise self._die(reason)
        if (error := future.exception()) is not None:
            lost = isinstance(error, PeerLost)
            reason = self.ranks.why_ended(_PATIENCE) if lost else None
            raise self._die(reason or f"rank 0 failed: {error!r}") from error
        return future.result()

    def _die(self, reason: str) -> EngineDeadError:
        """A rank that has failed halfway cannot go on with the others: all end."""
        self._dead = f"tensor parallelism has ended, because {reason}"
        self._end()
        self._thread.stop()
        return EngineDeadError(self._dead)
