"""Percentiles, linear between samples as numpy's. Introduced in chapter 1."""

from __future__ import annotations


def percentile(samples: list[float] | tuple[float, ...], q: float) -> float:
    """The q-th percentile (0–100), linear between samples. Raises ValueError without samples or outside 0–100."""
    if not samples:
        raise ValueError("samples is empty: a percentile needs at least one")
    if not 0 <= q <= 100:
        raise ValueError(f"q={q}: must be within 0 and 100")
    ordered = sorted(samples)
    position = (len(ordered) - 1) * q / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
