"""The kernels that measure a device's ceilings: reading a matrix far larger than the caches, and square products.

Introduced in chapter 1.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lib.bench.measure.timing import measure


def dtype_name(dtype: torch.dtype | str) -> str:
    """`torch.float32` and "float32" both give "float32"; "tf32" stays: fp32 data, multiplied in TensorFloat-32."""
    return str(dtype).removeprefix("torch.")


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
