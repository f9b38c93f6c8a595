"""Recorded runs and published figures, as files: one JSON per hardware and chapter under `book/measurements/`.

Introduced in chapter 1.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.bench.measure.machine import hardware
from lib.bench.measure.roofline import Roofline
from lib.bench.paths import measurements_dir
from lib.bench.records.json_file import write_json
from lib.bench.records.series import Series

__all__ = ["SCHEMA", "Reference", "Run", "read_record", "read_records", "reference", "write_json"]

SCHEMA = 1
_NEEDED = {
    "scale": str,
    "measurements": dict,
    "fingerprint": dict,
}  # without these it cannot be read


@dataclass(frozen=True)
class Run:
    """A recorded run. `run["latency_by_prompt"]` is its Series, or None where that was not measured."""

    data: dict[str, Any]

    def __getitem__(self, name: str) -> Series | None:
        found = self.data["measurements"].get(name)
        return None if found is None else Series.from_json(name, found)

    @property
    def label(self) -> str:
        """The hardware's name for a figure's legend."""
        return self.data["fingerprint"]["hardware"]["label"]

    @property
    def slug(self) -> str:
        return self.data["fingerprint"]["hardware"]["slug"]

    @property
    def roofline(self) -> Roofline | None:
        found = self.data.get("roofline")
        return found and Roofline(self.data["fingerprint"]["hardware"]["kind"], **found)

    def __getattr__(self, name: str) -> Any:
        """chapter, scale, model, weights, dtype, seconds, headlines, fingerprint: as in the file."""
        data = self.__dict__.get("data", {})
        if name in data:
            return data[name]
        raise AttributeError(name)

    @property
    def gates(self) -> list[dict[str, Any]]:
        """Experiment, ok, reasons and load of each gate; empty for records that were made without them."""
        return self.data.get("gates", [])

    @property
    def date(self) -> str:
        return self.data["fingerprint"]["date"][:10]


@dataclass(frozen=True)
class Reference:
    """Published figures: `reference()["batch_sweep"]["tok_s"]`, with `source` and a `label` for legends."""

    data: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.data[name]

    @property
    def source(self) -> str:
        return self.data["source"]

    @property
    def label(self) -> str:
        return f"{self.data['setup']['gpu']}, published"


def read_records(
    chapter: str, *, others_only: bool = False, folder: Path | str | None = None
) -> list[Run]:
    """All recorded runs of a chapter, by its name ("02_kv_cache") or number ("02"), sorted by hardware.

    `others_only` leaves out this machine's own hardware. Smoke runs are no measurements and are left out.
    """
    folder = measurements_dir() if folder is None else Path(folder)
    pattern = f"*/{chapter}_*.json" if chapter.isdigit() else f"*/{chapter}.json"
    records = [
        data for path in sorted(folder.glob(pattern)) if (data := read_record(path)) is not None
    ]
    own = hardware()["slug"] if others_only else None
    runs = [Run(data) for data in records if data["scale"] != "smoke"]
    return [run for run in runs if run.slug != own]


def reference(path: Path | str | None = None) -> Reference:
    """The published A100 figures that the book sets itself beside. Raises FileNotFoundError where they are missing."""
    path = measurements_dir() / "reference" / "seed_results.json" if path is None else Path(path)
    return Reference(json.loads(path.read_text()))


def read_record(path: Path) -> dict[str, Any] | None:
    """A record's data; None where there is no such file. Raises ValueError for a file that is no record."""
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError(f"{path} is no record of schema {SCHEMA}")
    for name, kind in _NEEDED.items():
        if not isinstance(data.get(name), kind):
            raise ValueError(f"{path}: {name} must be a {kind.__name__}, got {data.get(name)!r}")
    return data
