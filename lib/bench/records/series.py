"""One named measurement: columns of equal length, raw samples beside the medians, and everything checked.

Introduced in chapter 1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lib.bench.measure.timing import Timing

Cell = float | int | str | bool | None


@dataclass(frozen=True)
class Series:
    """`series["prompt"]` is a column (medians where it was timed); `samples["no_cache"]` has its raw samples, by row."""

    name: str
    unit: str
    columns: dict[str, list[Cell]]
    params: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[list[float]]] = field(default_factory=dict)
    seed: int | None = None

    def __getitem__(self, column: str) -> list[Cell]:
        if column not in self.columns:
            raise KeyError(
                f"{self.name} has no column {column!r}; it has {', '.join(self.columns)}"
            )
        return self.columns[column]

    def __contains__(self, column: str) -> bool:
        return column in self.columns

    def rows(self) -> list[dict[str, Cell]]:
        """The same data, one dict a row."""
        return [dict(zip(self.columns, values)) for values in zip(*self.columns.values())]

    def to_json(self) -> dict[str, Any]:
        return {
            "unit": self.unit, "params": self.params, "seed": self.seed, "columns": self.columns, "samples": self.samples,
        }  # fmt: skip

    @classmethod
    def from_json(cls, name: str, data: Mapping[str, Any]) -> "Series":
        return cls(
            name, data["unit"], data["columns"], data["params"], data["samples"], data["seed"]
        )


def make_series(
    name: str,
    unit: str,
    columns: Mapping[str, Sequence[Any]] | None = None,
    points: Sequence[Mapping[str, Any]] | None = None,
    params: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Series:
    """A checked Series from columns or from points (rows with the same keys). A Timing becomes its median and samples.

    Raises ValueError for an empty name or unit, no data, columns of unequal length, a value that is NaN or infinite,
    or one that JSON has no place for. None is allowed: it says that there is no such measurement.
    """
    _named(name, "measurement")
    if not isinstance(unit, str) or not unit.strip():
        raise ValueError(
            f"{name}: unit={unit!r} must be a non-empty text such as 's' or 'tokens/s'"
        )
    if (columns is None) == (points is None):
        raise ValueError(f"{name}: give either columns= or points=")
    if points is not None:
        columns = _from_points(name, points)
    if not columns or not all(len(values) for values in columns.values()):
        raise ValueError(f"{name}: has no data")
    lengths = {key: len(values) for key, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{name}: columns differ in length: {lengths}")
    clean: dict[str, list[Cell]] = {}
    samples: dict[str, list[list[float]]] = {}
    for key, values in columns.items():
        _named(key, f"column of {name}")
        medians = [value.median if isinstance(value, Timing) else value for value in values]
        clean[key] = [check_value(value, f"{name}.{key}[{i}]") for i, value in enumerate(medians)]
        if any(isinstance(value, Timing) for value in values):
            samples[key] = [
                list(value.samples) if isinstance(value, Timing) else [] for value in values
            ]
            check_value(samples[key], f"{name}.{key} samples")
    return Series(
        name, unit, clean, check_value(dict(params or {}), f"{name}.params"), samples, seed
    )


def check_value(value: Any, where: str) -> Any:
    """`value` as plain JSON data (numpy and torch scalars become Python's). Raises ValueError that names `where`."""
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return check_value(value.tolist(), where)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {
            _named(key, f"key of {where}"): check_value(item, f"{where}.{key}")
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [check_value(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(
                f"{where} is {value}: a record holds finite numbers, and None where there is none"
            )
        return value
    raise ValueError(
        f"{where} is a {type(value).__name__}: a record holds numbers, texts, None, lists and dicts"
    )


def _named(name: Any, what: str) -> str:
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"name of a {what} is {name!r}: must be a non-empty text")
    return name


def _from_points(name: str, points: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    if not points:
        raise ValueError(f"{name}: has no data")
    keys = list(points[0])
    for i, point in enumerate(points):
        if list(point) != keys:
            raise ValueError(f"{name}: point {i} has {list(point)}, the first has {keys}")
    return {key: [point[key] for point in points] for key in keys}
