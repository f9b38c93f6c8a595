"""The part of a sweep that fits into the memory of the device, and the sentence about the rest.

Introduced in chapter 3.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lib.bench.findings.values import listed

SHARE = (
    0.8  # of what is free: fragments of the allocator and what a step needs besides take the rest
)


@dataclass(frozen=True)
class MemoryFit:
    """A sweep cut to `free` bytes. left_out: (size, bytes that it would need)."""

    what: str  # what is swept, e.g. "batch"
    sizes: list[int]
    left_out: list[tuple[int, float]]
    free: float

    @property
    def sentence(self) -> str:
        """What the page says."""
        if not self.left_out:
            return f"Every {self.what} of this sweep fits into the memory of this device."
        rest = listed([f"{size:,} ({needs / 1e9:.1f} GB)" for size, needs in self.left_out])
        return (
            f"Left out for lack of memory: {self.what} {rest}. "
            f"{self.free / 1e9:.1f} GB were free on this device."
        )


def all_fit(fits: Sequence[MemoryFit]) -> str:
    """The sentence for several sweeps: one where each of them is complete, else one for each."""
    if any(fit.left_out for fit in fits):
        return " ".join(fit.sentence for fit in fits)
    each = listed([f"every {fit.what}" for fit in fits])
    verb = "fits" if len(fits) == 1 else "fit"
    return f"{each[:1].upper()}{each[1:]} of these sweeps {verb} into the memory of this device."


def fitting(
    what: str, sizes: Sequence[int], needed: Callable[[int], float], free: float
) -> MemoryFit:
    """Keeps the sizes that need at most a share of `free` bytes. `needed(size)` is in bytes and grows with the size.

    Raises ValueError where not even the smallest fits.
    """
    kept = [size for size in sizes if needed(size) <= SHARE * free]
    if not kept:
        smallest = min(sizes)
        raise ValueError(
            f"{what} {smallest} needs {needed(smallest) / 1e9:.1f} GB, more than {SHARE:.0%} of the "
            f"{free / 1e9:.1f} GB that are free on this device"
        )
    return MemoryFit(what, kept, [(size, needed(size)) for size in sizes if size not in kept], free)
