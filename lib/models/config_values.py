"""Values of a config.json's keys, checked: each function raises ValueError that names the key. Introduced in chapter 1."""

from __future__ import annotations

from typing import Any


def flag(raw: dict[str, Any], key: str, default: bool) -> bool:
    """`raw[key]`, which must be a bool."""
    value = raw.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false, got {value!r}")
    return value


def count(raw: dict[str, Any], key: str, *default: int) -> int:
    """`raw[key]`, which must be an integer >= 1. Raises KeyError where it is missing without a default."""
    value = raw.get(key, *default) if default else raw[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key} must be a positive integer, got {value!r}")
    return value


def positive(raw: dict[str, Any], key: str, default: float | None = None) -> float | None:
    """`raw[key]`, which must be a number > 0; None is allowed where the default is None."""
    value = raw.get(key, default)
    if value is None and default is None:
        return None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value < float("inf"):
        raise ValueError(f"{key} must be a number > 0, got {value!r}")
    return value


def even_share(raw: dict[str, Any], width: str, heads: str) -> int:
    """`raw[width]` over `raw[heads]`, which must divide it: the head size of most families."""
    size, number = count(raw, width), count(raw, heads)
    if size % number:
        raise ValueError(f"{width} must be a multiple of {heads}, got {size} and {number}")
    return size // number
