"""This machine's two ceilings, measured: how fast it streams weights and how fast it multiplies matrices.

A step that moves `bytes` and computes `flops` cannot end before max(bytes / bandwidth, flops / rate): the roofline
(Williams, Waterman & Patterson, 2009). Data sheets promise more than programs get, so both rates are measured.

Introduced in chapter 1.
"""

import contextlib
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch

from lib.bench.measure.ceilings import dtype_name, measure_bandwidth, measure_matmul, tf32
from lib.bench.measure.machine import default_device, hardware
from lib.bench.paths import repository
from lib.bench.scale import scale

__all__ = ["Roofline", "dtype_name", "machine_roofline", "measure_bandwidth", "measure_matmul", "measure_roofline",
           "measure_rounds", "tf32"]  # fmt: skip

ROUNDS = 5  # of each kernel, in turns


@dataclass(frozen=True)
class Roofline:
    """Ceilings of one device: `bandwidth` in B/s, `flops[dtype]` in FLOP/s; `details` has each kernel's own rate.

    spread: by "bandwidth" and dtype, the range of the rounds over their median; empty for a single measurement.
    runs: by the same names, the ceiling in each known run of this machine; empty where only this one is known.
    """

    device: str
    bandwidth: float
    flops: dict[str, float]
    details: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    runs: dict[str, list[float]] = field(default_factory=dict)

    def rate(self, dtype: torch.dtype | str = "float32") -> float:
        """FLOP/s of a dtype. Raises ValueError for one that was not measured."""
        name = dtype_name(dtype)
        if name not in self.flops:
            raise ValueError(
                f"dtype={name!r} has no measured rate on {self.device}; measured: {', '.join(self.flops)}"
            )
        return self.flops[name]

    def time(
        self, bytes: float = 0.0, flops: float = 0.0, dtype: torch.dtype | str = "float32"
    ) -> float:
        """The lower bound in seconds for moving `bytes` and computing `flops`, both overlapped perfectly."""
        return max(bytes / self.bandwidth, flops / self.rate(dtype) if flops else 0.0)

    def ridge(self, dtype: torch.dtype | str = "float32") -> float:
        """FLOPs per byte where the two bounds meet: below it, bandwidth bounds; above it, arithmetic."""
        return self.rate(dtype) / self.bandwidth


def measure_roofline(
    device: torch.device | str | None = None,
    dtypes: Sequence[torch.dtype | str] = ("float32", "bfloat16"),
    quick: bool | None = None,
) -> Roofline:
    """Measures both ceilings in a few seconds (`quick`, the default at smoke scale: well under one).

    On CUDA, "tf32" is measured beside "float32" (which is exact fp32).
    """
    device = default_device() if device is None else torch.device(device)
    quick = scale() == "smoke" if quick is None else quick
    details = measure_bandwidth(device, quick)
    names = _names(device, dtypes)
    rates = {name: measure_matmul(device, name, quick) for name in names}
    return Roofline(str(device), max(details.values()), rates, details)


def machine_roofline(
    device: torch.device | str | None = None,
    dtypes: Sequence[torch.dtype | str] = ("float32", "bfloat16"),
    folder: Path | str | None = None,
) -> Roofline:
    """This machine's ceilings, measured once and shared by all chapters: the median of `ROUNDS` rounds, with its spread.

    The first call measures and keeps every round under `folder`, by default `_build/machine/`; later calls, in this
    process or another, read them, and measure only the dtypes that are not there yet. The file's name holds what the
    rates depend on: hardware, torch's version, threads and this boot of the machine. It goes with the chapters' cached
    outputs (`make book` drops both together) and with `make clean`. At smoke scale: measured quickly, nothing is kept.
    """
    device = default_device() if device is None else torch.device(device)
    if scale() == "smoke":
        return measure_roofline(device, dtypes, quick=True)
    folder = repository() / "_build" / "machine" if folder is None else Path(folder)
    path = folder / f"roofline-{_machine_key(device)}.json"
    rounds: dict[str, list[float]] = _read_rounds(path)
    names = _names(device, dtypes)
    absent = [name for name in names if name not in rounds]
    streams = {"mv", "sum"} <= rounds.keys()
    if absent or not streams:
        rounds |= _measure_rounds(device, absent, bandwidth=not streams)
        _write_rounds(path, rounds)
    return _from_rounds(str(device), rounds, names)


def measure_rounds(
    device: torch.device | str | None = None,
    dtypes: Sequence[torch.dtype | str] = ("float32", "bfloat16"),
) -> Roofline:
    """The ceilings as they are now: the median of `ROUNDS` rounds, with its spread. Nothing is read or kept."""
    device = default_device() if device is None else torch.device(device)
    names = _names(device, dtypes)
    return _from_rounds(str(device), _measure_rounds(device, names, bandwidth=True), names)


def _names(device: torch.device, dtypes: Sequence[torch.dtype | str]) -> list[str]:
    names = [dtype_name(dtype) for dtype in dtypes]
    if device.type == "cuda" and "float32" in names and "tf32" not in names:
        names.insert(names.index("float32") + 1, "tf32")
    return names


def _measure_rounds(
    device: torch.device, names: Sequence[str], bandwidth: bool
) -> dict[str, list[float]]:
    """Rates of each round, in turns: a disturbance falls on one round of every kernel, not on all rounds of one."""
    rounds: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        found = measure_bandwidth(device) if bandwidth else {}
        found |= {name: measure_matmul(device, name) for name in names}
        for name, rate in found.items():
            rounds.setdefault(name, []).append(rate)
    return rounds


def _from_rounds(device: str, rounds: Mapping[str, list[float]], names: Sequence[str]) -> Roofline:
    # The better kernel of each round: a slow kernel is no property of the memory.
    streams = [max(pair) for pair in zip(rounds["mv"], rounds["sum"])]
    spread = {"bandwidth": _spread(streams)} | {name: _spread(rounds[name]) for name in names}
    details = {name: median(rounds[name]) for name in ("mv", "sum")}
    flops = {name: median(rounds[name]) for name in names}
    return Roofline(device, median(streams), flops, details, spread)


def _spread(rates: Sequence[float]) -> float:
    return (max(rates) - min(rates)) / median(rates)


def _machine_key(device: torch.device) -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = platform.node()
    parts = (torch.__version__, str(torch.get_num_threads()), str(device), boot)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
    return f"{hardware(device)['slug']}-{digest}"


def _read_rounds(path: Path) -> dict[str, list[float]]:
    """What the file holds; nothing where it is absent or not whole."""
    try:
        found = json.loads(path.read_text())
        rounds = {name: [float(r) for r in rates] for name, rates in found["rounds"].items()}
        return {name: rates for name, rates in rounds.items() if rates}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write_rounds(path: Path, rounds: Mapping[str, list[float]]) -> None:
    """Whole or not at all. A folder that cannot be written costs the next chapter a measurement, not this one its run."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w") as file:
            json.dump(
                {"unit": "B/s and FLOP/s, one value per round", "rounds": rounds}, file, indent=1
            )
        os.replace(temporary, path)
