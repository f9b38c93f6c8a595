"""How large a chapter's sweep is: `smoke` (a test), `cpu` (a reading copy), `gpu` (the full sweeps).

Introduced in chapter 1.
"""

import os
from typing import TypeVar

import torch

T = TypeVar("T")
SCALES = ("smoke", "cpu", "gpu")


def scale() -> str:
    """The scale of this run: `BOOK_SCALE` where it is set, else `gpu` with a CUDA device and `cpu` without.

    Raises ValueError when `BOOK_SCALE` is none of smoke, cpu, gpu.
    """
    asked = os.environ.get("BOOK_SCALE", "").strip()
    if not asked:
        return "gpu" if torch.cuda.is_available() else "cpu"
    if asked not in SCALES:
        raise ValueError(
            f"BOOK_SCALE={asked!r}: must be one of {', '.join(SCALES)}, or unset to follow the device"
        )
    return asked


def pick(*, smoke: T, cpu: T, gpu: T) -> T:
    """The value for this run's scale: `pick(smoke=[8], cpu=[64, 256], gpu=[64, 256, 512])`."""
    return {"smoke": smoke, "cpu": cpu, "gpu": gpu}[scale()]
