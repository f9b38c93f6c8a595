"""Recorded runs: what a chapter measured, on what, as one JSON file per hardware and chapter.

Introduced in chapter 1.
"""
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lib.bench.fingerprint import fingerprint, hardware
from lib.bench.options import options
from lib.bench.paths import measurements_dir, repository
from lib.bench.roofline import Roofline, dtype_name
from lib.bench.scale import SCALES, scale
from lib.bench.series import Series, check_value, make_series

SCHEMA = 1


class Record:
    """Collects what one chapter measures; `finish()` writes it when the script was started with `--record DIR`.

    chapter: the script's name without .py, e.g. "02_kv_cache". model: e.g. "gpt2". weights: "real" or "random".
    Raises ValueError for an empty name, unknown weights, and whatever `make_series` refuses.
    """

    def __init__(
        self,
        chapter: str,
        *,
        model: str,
        weights: str,
        dtype: torch.dtype | str,
        device: torch.device | str | None = None,
        seed: int | None = None,
        roofline: Roofline | None = None,
    ):
        if not isinstance(chapter, str) or not chapter.strip() or Path(chapter).name != chapter:
            raise ValueError(f"chapter={chapter!r}: must be the name of the chapter's script, without folder and .py")
        if not isinstance(model, str) or not model.strip():
            raise ValueError(f"model={model!r}: must be a non-empty name")
        if weights not in ("real", "random"):
            raise ValueError(f"weights={weights!r}: must be 'real' or 'random'")
        self.chapter, self.model, self.weights, self.dtype = chapter, model, weights, dtype_name(dtype)
        self.device, self.seed, self.roofline = device, seed, roofline
        self.series: dict[str, Series] = {}
        self.headlines: list[dict[str, Any]] = []
        self._start = time.perf_counter()

    def add(
        self,
        name: str,
        *,
        unit: str,
        columns: Mapping[str, Sequence[Any]] | None = None,
        points: Sequence[Mapping[str, Any]] | None = None,
        params: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> Series:
        """Adds a measurement and returns it. Values may be Timings, whose raw samples are kept. See `make_series`."""
        if name in self.series:
            raise ValueError(f"{name!r} has been added to {self.chapter} already")
        self.series[name] = make_series(name, unit, columns, points, params, self.seed if seed is None else seed)
        return self.series[name]

    def __getitem__(self, name: str) -> Series:
        return self.series[name]

    def headline(self, text: str, value: float, unit: str = "") -> None:
        """A figure for the scoreboard and for the record command's table; the first one is the chapter's own."""
        self.headlines.append({"text": text, "value": check_value(value, f"headline {text!r}"), "unit": unit})

    def to_json(self) -> dict[str, Any]:
        """The record as plain data."""
        result = {
            "schema": SCHEMA,
            "chapter": self.chapter,
            "scale": scale(),
            "model": self.model,
            "weights": self.weights,
            "dtype": self.dtype,
            "seconds": round(time.perf_counter() - self._start, 3),
            "headlines": self.headlines,
            "roofline": None,
            "fingerprint": fingerprint(self.device),
            "source": source_digest(_script(self.chapter)),
            "measurements": {name: series.to_json() for name, series in self.series.items()},
        }
        if self.roofline is not None:
            result["roofline"] = {
                "bandwidth": self.roofline.bandwidth, "flops": self.roofline.flops, "details": self.roofline.details,
            }  # fmt: skip
        return check_value(result, self.chapter)

    def save(self, folder: Path | str) -> Path:
        """Writes `<folder>/<hardware slug>/<chapter>.json`, whole or not at all, and returns its path.

        Raises ValueError without measurements, or where it would replace a record of a larger scale.
        """
        if not self.series:
            raise ValueError(f"{self.chapter}: nothing was measured, so there is nothing to save")
        data = self.to_json()
        path = Path(folder) / data["fingerprint"]["hardware"]["slug"] / f"{self.chapter}.json"
        there = read_record(path)
        if there is not None and SCALES.index(there["scale"]) > SCALES.index(data["scale"]):
            raise ValueError(f"{path} holds a record at {there['scale']} scale: {data['scale']} must not replace it")
        write_json(path, data)
        return path

    def finish(self) -> Path | None:
        """The last line of a chapter: saves where `--record DIR` asks for it, does nothing otherwise."""
        folder = options().record
        return None if folder is None else self.save(folder)


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
        found = self.data["roofline"]
        return found and Roofline(self.data["fingerprint"]["hardware"]["kind"], **found)

    def __getattr__(self, name: str) -> Any:
        """chapter, scale, model, weights, dtype, seconds, headlines, fingerprint: as in the file."""
        data = self.__dict__.get("data", {})
        if name in data:
            return data[name]
        raise AttributeError(name)

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


def load_records(chapter: str, *, others_only: bool = False, folder: Path | str | None = None) -> list[Run]:
    """All recorded runs of a chapter, by its name ("02_kv_cache") or number ("02"), sorted by hardware.

    `others_only` leaves out this machine's own hardware. Smoke runs are no measurements and are left out.
    """
    folder = measurements_dir() if folder is None else Path(folder)
    pattern = f"*/{chapter}_*.json" if chapter.isdigit() else f"*/{chapter}.json"
    records = [data for path in sorted(folder.glob(pattern)) if (data := read_record(path)) is not None]
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
    return data


def write_json(path: Path, data: Any) -> None:
    """Writes through a temporary file in the same folder, so that a reader or a cut-off never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def source_digest(script: Path) -> str:
    """A digest of a chapter's script and all of `lib/`: a record with the same digest was made by the same code.

    This decides whether a chapter must run again, with or without git, on a clean tree or a dirty one.
    """
    digest = hashlib.sha256()
    lib = repository() / "lib"
    for path in [script, *sorted(lib.rglob("*.py"))]:
        digest.update(path.name.encode() + b"\0" + (path.read_bytes() if path.is_file() else b"") + b"\0")
    return digest.hexdigest()[:16]


def _script(chapter: str) -> Path:
    """The chapter's script: the one that runs, when it bears the chapter's name, else the one in `chapters/`."""
    running = Path(sys.argv[0])
    return running if running.stem == chapter else repository() / "chapters" / f"{chapter}.py"
