"""This machine's two ceilings, measured: how fast it streams weights and how fast it multiplies matrices.

A step that moves `bytes` and computes `flops` cannot end before max(bytes / bandwidth, flops / rate): the roofline
(Williams, Waterman & Patterson, 2009). Data sheets promise more than programs get, so both rates are measured.

Introduced in chapter 1.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from lib.bench.measure.machine import default_device
from lib.bench.measure.timing import measure
from lib.bench.scale import scale


def dtype_name(dtype: torch.dtype | str) -> str:
    """`torch.float32` and "float32" both give "float32"; "tf32" stays: fp32 data, multiplied in TensorFloat-32."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Roofline:
    """Ceilings of one device: `bandwidth` in B/s, `flops[dtype]` in FLOP/s; `details` has each kernel's own rate."""

    device: str
    bandwidth: float
    flops: dict[str, float]
    details: dict[str, float] = field(default_factory=dict)

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
    names = [dtype_name(dtype) for dtype in dtypes]
    if device.type == "cuda" and "float32" in names and "tf32" not in names:
        names.insert(names.index("float32") + 1, "tf32")
    rates = {name: measure_matmul(device, name, quick) for name in names}
    return Roofline(str(device), max(details.values()), rates, details)


def measure_bandwidth(device: torch.device | str, quick: bool = False) -> dict[str, float]:
    """B/s of reading a matrix far larger than the caches, as decoding reads weights: by `mv` and by `sum`.

    The ceiling is the better of the two: a slow kernel is no property of the memory.
    """
    device = torch.device(device)
    rows = (
        2**17 if device.type == "cuda" else 2**15
    )  # 2 GiB on a GPU, 512 MiB on a CPU: beyond any cache
    rows = rows // 8 if quick else rows
    matrix = torch.ones(rows, 4096, device=device)
    vector = torch.ones(4096, device=device)
    size = matrix.numel() * matrix.element_size()
    kernels = {"mv": lambda: torch.mv(matrix, vector), "sum": lambda: torch.sum(matrix)}
    return {name: size / _best(fn, device, quick) for name, fn in kernels.items()}


def measure_matmul(
    device: torch.device | str, dtype: torch.dtype | str, quick: bool = False
) -> float:
    """FLOP/s of a square matmul. "float32" is exact fp32, "tf32" lets CUDA round inputs to TensorFloat-32."""
    device, name = torch.device(device), dtype_name(dtype)
    torch_dtype = torch.float32 if name == "tf32" else getattr(torch, name)
    n = (8192 if device.type == "cuda" else 3072) // (4 if quick else 1)
    with tf32(name == "tf32"):
        # A dtype without its own instructions can be a hundred times slower: try a small product before the large one.
        small = _square(device, torch_dtype, 256)
        while n > 256 and _best(small, device, True) * (n / 256) ** 3 > (0.03 if quick else 0.4):
            n //= 2
        return 2 * n**3 / _best(_square(device, torch_dtype, n), device, quick)


def _square(device: torch.device, dtype: torch.dtype, n: int):
    a, b = (
        torch.ones(n, n, device=device, dtype=dtype),
        torch.ones(n, n, device=device, dtype=dtype),
    )
    return lambda: torch.mm(a, b)


def _best(fn, device: torch.device, quick: bool) -> float:
    """Seconds of the fastest of a few runs: a ceiling is what the machine can do, not what it did on average."""
    clock = "events" if device.type == "cuda" else "wall"
    timing = measure(
        fn,
        warmup=1,
        repeats=3 if quick else 10,
        device=device,
        clock=clock,
        budget=0.1 if quick else 0.7,
    )
    return min(timing.samples)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Sets whether fp32 matmuls on CUDA may round to TensorFloat-32 (10-bit mantissa), and restores it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
