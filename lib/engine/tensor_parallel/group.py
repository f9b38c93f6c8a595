"""The connection between the ranks: torch.distributed's gloo on CPUs, NCCL on GPUs. Introduced in chapter 13."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_T = TypeVar("_T")
# A rank without work waits for the next batch: for as long as the engine has no requests.
_IDLE = timedelta(days=3650)
# Longest that rank 0 waits for ranks that are alive: far longer than any step.
_STEP = timedelta(minutes=5)


class PeerLost(RuntimeError):
    """A rank has closed its connection, or does not answer."""


class Group:
    """Rank `rank` of `size`. Implements `lib.models.parallel.layers.Communicator`; batches come from rank 0.

    It owns its process groups instead of torch.distributed's default one, so that a process can hold
    several engines. Commands and batches travel by gloo; activations by gloo too if `device` is a
    CPU, else by NCCL. All ranks must call the same methods in the same order.

    host: the address at which this rank listens; None: that of the machine's name.
    """

    def __init__(
        self, store: dist.Store, rank: int, size: int, device: torch.device, host: str | None = None
    ) -> None:
        self.store, self.rank, self.size, self.device, self.host = store, rank, size, device, host
        self._control: dist.ProcessGroupGloo | None = None
        self._data: dist.ProcessGroupGloo | dist.ProcessGroupNCCL | None = None

    @property
    def connected(self) -> bool:
        return self._control is not None

    def connect(self) -> None:
        """Wait until all ranks have connected. Raises PeerLost where that fails."""
        if self.connected:
            return
        with_peers = _gloo if self.host is None else _gloo_at(self.host)
        timeout = _STEP if self.rank == 0 else _IDLE
        self._data = self._control = _checked(
            lambda: with_peers(dist.PrefixStore("gloo", self.store), self.rank, self.size, timeout)
        )
        if self.device.type == "cuda":
            store = dist.PrefixStore("nccl", self.store)
            options = dist.ProcessGroupNCCL.Options()
            self._data = dist.ProcessGroupNCCL(store, self.rank, self.size, options)

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of all ranks' x, elementwise, in each rank. Overwrites x where it is contiguous."""
        x = x.contiguous()
        _checked(lambda: self._data.allreduce([x]).wait())
        return x

    def gather(self, x: Tensor) -> list[Tensor] | None:
        """All ranks' x, which are of one shape and type, in rank 0; None elsewhere."""
        outputs = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else []
        options = dist.GatherOptions()
        options.rootRank = 0
        received = [outputs] if self.rank == 0 else []
        _checked(lambda: self._data.gather(received, [x.contiguous()], options).wait())
        return outputs or None

    def broadcast(self, x: Tensor) -> Tensor:
        """Rank 0's x, a contiguous tensor in main memory, in every rank; other ranks' x are overwritten."""
        options = dist.BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        _checked(lambda: self._control.broadcast([x], options).wait())
        return x

    def abort(self) -> None:
        """Make calls that wait for other ranks fail."""
        for group in {self._data, self._control} - {None}:
            group.abort()


def _gloo(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.ProcessGroupGloo:
    return dist.ProcessGroupGloo(store, rank, size, timeout)


def _gloo_at(host: str) -> Callable[..., dist.ProcessGroupGloo]:
    def make(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.ProcessGroupGloo:
        options = dist.ProcessGroupGloo._Options()
        options._timeout = timeout
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
        return dist.ProcessGroupGloo(store, rank, size, options)

    return make


def _checked(call: Callable[[], _T]) -> _T:
    try:
        return call()
    except RuntimeError as error:  # gloo and NCCL have no types of their own for a lost connection
        raise PeerLost(str(error)) from error
