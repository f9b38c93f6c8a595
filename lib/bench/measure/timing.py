"""Seconds, with the care they need: warm-up, repeats, a device that has really finished, and every raw sample.

Introduced in chapter 1.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lib.bench.measure.machine import default_device
from lib.bench.measure.percentiles import percentile


@dataclass(frozen=True)
class Timing:
    """All samples of one measurement, in seconds."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return percentile(self.samples, 50)

    def rate(self, count: float) -> float:
        """`count` divided by the median: things per second, e.g. `timing.rate(tokens)`."""
        return count / self.median

    def times(self, factor: float) -> "Timing":
        """Every sample times a factor: `timing.times(1e3 / tokens)` is milliseconds per token."""
        return Timing(tuple(factor * sample for sample in self.samples))

    def rates(self, count: float) -> "Rates":
        """The same for every sample, so that a record of a throughput keeps its raw samples too."""
        return Rates(tuple(count / sample for sample in self.samples))


class Rates(Timing):
    """Samples in things per second instead of seconds; the median is of the rates."""


def synchronize(device: torch.device | str) -> None:
    """Waits until the device has finished all queued work: CUDA calls return before the GPU has begun."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    fn: Callable[..., Any],
    *,
    warmup: int = 1,
    repeats: int = 5,
    device: torch.device | str | None = None,
    setup: Callable[[], Any] | None = None,
    budget: float | None = None,
    clock: str = "wall",
) -> Timing:
    """Times `fn()` `repeats` times, after `warmup` runs that do not count.

    With `setup`, each run is `fn(setup())` and only fn is timed. `budget` (seconds of counted runs) ends the repeats
    early, never before the first sample. `clock`: "wall" is the time a caller waits, host work included, up to the
    end of the device's work; "events" is the span on the GPU between two CUDA events.
    """
    if warmup < 0 or repeats < 1:
        raise ValueError(f"warmup={warmup}, repeats={repeats}: need warmup >= 0 and repeats >= 1")
    device = default_device() if device is None else torch.device(device)
    if clock not in ("wall", "events"):
        raise ValueError(f"clock={clock!r}: must be 'wall' or 'events'")
    if clock == "events" and device.type != "cuda":
        raise ValueError(f"clock='events' needs a CUDA device, not {device}")
    once = _events if clock == "events" else _wall
    samples: list[float] = []
    for run in range(warmup + repeats):
        args = () if setup is None else (setup(),)
        seconds = once(fn, args, device)
        if run >= warmup:
            samples.append(seconds)
        if budget is not None and samples and sum(samples) >= budget:
            break
    return Timing(tuple(samples))


def measure_in_turns(
    fns: Mapping[str, Callable[[], Any]],
    *,
    warmup: int = 1,
    repeats: int = 3,
    device: torch.device | str | None = None,
) -> dict[str, Timing]:
    """Times several functions that are to be compared: a, b, c, a, b, c, … so that a disturbance falls on all of them.

    Raises ValueError where there is nothing to time, and for what `measure` refuses.
    """
    if not fns or warmup < 0 or repeats < 1:
        raise ValueError(
            f"{len(fns)} functions, warmup={warmup}, repeats={repeats}: need at least 1, 0 and 1"
        )
    samples: dict[str, list[float]] = {name: [] for name in fns}
    for run in range(warmup + repeats):
        for name, fn in fns.items():
            (seconds,) = measure(fn, warmup=0, repeats=1, device=device).samples
            if run >= warmup:
                samples[name].append(seconds)
    return {name: Timing(tuple(found)) for name, found in samples.items()}


def _wall(fn: Callable[..., Any], args: tuple, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    fn(*args)
    synchronize(device)
    return time.perf_counter() - start


def _events(fn: Callable[..., Any], args: tuple, device: torch.device) -> float:
    with torch.cuda.device(device):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        fn(*args)
        end.record()
        torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000  # CUDA reports milliseconds


@dataclass
class Stopwatch:
    """What `timed` yields; `seconds` is set when the block ends."""

    seconds: float = float("nan")


@contextmanager
def timed(device: torch.device | str | None = None) -> Iterator[Stopwatch]:
    """Times a block once, up to the end of the device's work: `with timed(device) as t: ...; t.seconds`."""
    device = default_device() if device is None else torch.device(device)
    watch = Stopwatch()
    synchronize(device)
    start = time.perf_counter()
    try:
        yield watch
    finally:
        synchronize(device)
        watch.seconds = time.perf_counter() - start
