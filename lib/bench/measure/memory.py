"""Peak memory and utilisation of a block of code, on a GPU and on a CPU.

Introduced in chapter 1.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lib.bench.measure import nvml
from lib.bench.measure.host import allowed_cores
from lib.bench.measure.machine import default_device
from lib.bench.measure.percentiles import percentile
from lib.bench.measure.timing import synchronize


class Sampler:
    """Calls `read()` every `interval` seconds in a thread, from `start()` to `stop()`; keeps (seconds, value) pairs."""

    def __init__(self, read: Callable[[], Any], interval: float):
        if interval <= 0:
            raise ValueError(f"interval={interval}: must be above 0 seconds")
        self.samples: list[tuple[float, Any]] = []
        self._read, self._interval = read, interval
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._begin = time.perf_counter()
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            self._sample()

    def _sample(self) -> None:
        self.samples.append((time.perf_counter() - self._begin, self._read()))


@dataclass
class PeakMemory:
    """Bytes at the peak of a block; None where this device has no such number.

    allocated: torch's live tensors at the peak, weights included (CUDA). reserved: what its allocator held (CUDA).
    nvml: memory in use on the whole GPU, the CUDA context and other processes included. rss: growth of this
    process's resident memory during the block (CPU); memory that the process had already, even unused, is not growth.
    """

    allocated: int | None = None
    reserved: int | None = None
    nvml: int | None = None
    rss: int | None = None

    @property
    def bytes(self) -> int:
        """The headline figure: allocated on CUDA, rss on a CPU; 0 until the block has ended."""
        return (self.allocated if self.allocated is not None else self.rss) or 0


@contextmanager
def peak_memory(
    device: torch.device | str | None = None, interval: float = 0.005
) -> Iterator[PeakMemory]:
    """Measures the peak of a block: `with peak_memory(device) as m: ...; m.bytes`. A CPU is sampled every `interval`."""
    device = default_device() if device is None else torch.device(device)
    peak = PeakMemory()
    if device.type == "cuda":
        with nvml.handle(device) as found:
            synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            sampler = Sampler(lambda: _nvml_used(found), max(interval, 0.01)) if found else None
            if sampler:
                sampler.start()
            try:
                yield peak
            finally:
                synchronize(device)
                if sampler:
                    sampler.stop()
                    used = [value for _, value in sampler.samples if value is not None]
                    peak.nvml = max(used, default=None)
                peak.allocated = torch.cuda.max_memory_allocated(device)
                peak.reserved = torch.cuda.max_memory_reserved(device)
        return
    import psutil

    process = psutil.Process()
    before = process.memory_info().rss
    sampler = Sampler(lambda: process.memory_info().rss, interval)
    sampler.start()
    try:
        yield peak
    finally:
        sampler.stop()
        peak.rss = max(0, max(value for _, value in sampler.samples) - before)


def _nvml_used(found: tuple[Any, Any]) -> int | None:
    library, gpu = found
    memory = nvml.ask(library.nvmlDeviceGetMemoryInfo, gpu)
    return memory.used if memory else None


class UtilisationSampler:
    """Percent of time that the device was busy: `with UtilisationSampler(device) as u: ...; u.mean`.

    On CUDA: NVML's share of time with at least one kernel running (it says nothing of how full the GPU was). On a CPU:
    this process's share of the cores it may use. `samples` are (seconds since the start, percent) pairs. A GPU whose
    driver does not tell (a MIG slice) gives no samples: mean and peak are None then.
    """

    def __init__(self, device: torch.device | str | None = None, interval: float = 0.05):
        self.device = default_device() if device is None else torch.device(device)
        self.interval = interval
        self.samples: list[tuple[float, float]] = []

    def __enter__(self) -> "UtilisationSampler":
        if self.device.type == "cuda":
            self._nvml = nvml.handle(self.device)
            self._found = self._nvml.__enter__()
            read = self._gpu
        else:
            self._cores = allowed_cores()
            self._last = time.perf_counter(), time.process_time()
            read = self._cpu
        self._sampler = Sampler(read, self.interval)
        self._sampler.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._sampler.stop()
        if self.device.type == "cuda":
            self._nvml.__exit__(*error)
        self.samples = [(at, value) for at, value in self._sampler.samples if value is not None]

    def _gpu(self) -> float | None:
        if self._found is None:
            return None
        library, gpu = self._found
        rates = nvml.ask(library.nvmlDeviceGetUtilizationRates, gpu)
        return float(rates.gpu) if rates else None

    def _cpu(self) -> float:
        wall, busy = time.perf_counter(), time.process_time()
        (wall_before, busy_before), self._last = self._last, (wall, busy)
        # The process may lose its core between the two clocks: then the share of one sample comes out above the whole.
        return min(100.0, 100 * (busy - busy_before) / ((wall - wall_before) * self._cores))

    @property
    def mean(self) -> float | None:
        return sum(value for _, value in self.samples) / len(self.samples) if self.samples else None

    @property
    def peak(self) -> float | None:
        """The 95th percentile of the samples: a single one proves little."""
        return percentile([value for _, value in self.samples], 95) if self.samples else None


def page_faults() -> int | None:
    """Pages that the operating system has given this process so far, without reading a disk; None where it does not say.

    The difference around a block counts how much of the memory that the block wrote was fresh.
    """
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
