"""Where the time of a call goes, by operator and by kernel family: a thin wrapper around torch.profiler.

Introduced in chapter 1.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from lib.bench.measure.kernel_families import cpu_family, cuda_family
from lib.bench.measure.machine import default_device
from lib.bench.measure.timing import synchronize


@dataclass(frozen=True)
class OpStat:
    """One operator (CPU) or kernel (CUDA): its own time in seconds, without what it calls, and its share of all."""

    name: str
    family: str
    calls: int
    seconds: float
    share: float


@dataclass(frozen=True)
class Profile:
    """Operators of one call, slowest first.

    seconds: the sum of the operators' own time (on CUDA: time that the GPU computed or copied). The profiler slows a
    CPU-bound call: compare shares, not seconds.
    """

    ops: tuple[OpStat, ...]

    @property
    def seconds(self) -> float:
        return sum(op.seconds for op in self.ops)

    def top_ops(self, n: int = 5) -> list[OpStat]:
        """The n operators with the most time of their own."""
        return list(self.ops[:n])

    def by_family(self) -> dict[str, float]:
        """Share of the time for each kernel family that occurs, largest first; the shares sum to 1."""
        shares: dict[str, float] = {}
        for op in self.ops:
            shares[op.family] = shares.get(op.family, 0.0) + op.share
        return dict(sorted(shares.items(), key=lambda item: -item[1]))


def profile(
    fn: Callable[[], Any], device: torch.device | str | None = None, warmup: int = 1
) -> Profile:
    """Profiles one call of `fn` after `warmup` calls: device time of kernels on CUDA, self time of operators on a CPU.

    On a CPU, an operator that runs both with one row and with many is listed twice, as gemv and as gemm.
    """
    device = default_device() if device is None else torch.device(device)
    for _ in range(warmup):
        fn()
    synchronize(device)
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]
    trace = torch_profile(activities=activities, record_shapes=not cuda)
    with _stderr_closed():
        trace.start()
    try:
        fn()
        synchronize(device)
    finally:
        with _stderr_closed():
            trace.stop()
    rows = _cuda_rows(trace) if cuda else _cpu_rows(trace)
    total = sum(seconds for _, seconds in rows.values()) or 1.0
    ops = [
        OpStat(name, family, calls, seconds, seconds / total)
        for (name, family), (calls, seconds) in rows.items()
    ]
    return Profile(tuple(sorted(ops, key=lambda op: -op.seconds)))


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """Drops what is written to file descriptor 2: the profiler's C++ side reports its start and stop there, which
    a notebook would show as output of the cell."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _cpu_rows(trace: torch_profile) -> dict[tuple[str, str], tuple[int, float]]:
    rows: dict[tuple[str, str], tuple[int, float]] = {}
    for event in trace.key_averages(group_by_input_shape=True):
        if event.is_user_annotation:
            continue
        key = event.key, cpu_family(event.key, event.input_shapes or ())
        calls, seconds = rows.get(key, (0, 0.0))
        rows[key] = calls + event.count, seconds + event.self_cpu_time_total / 1e6
    return rows


def _cuda_rows(trace: torch_profile) -> dict[tuple[str, str], tuple[int, float]]:
    rows: dict[tuple[str, str], tuple[int, float]] = {}
    for event in trace.key_averages():
        # Operators appear too, with the time of the kernels they launched: only what ran on the GPU itself counts once.
        if event.device_type != DeviceType.CUDA or event.is_user_annotation:
            continue
        key = event.key, cuda_family(event.key)
        calls, seconds = rows.get(key, (0, 0.0))
        rows[key] = calls + event.count, seconds + event.self_device_time_total / 1e6
    return rows
