"""Recording a run: what a chapter measured, and on what. `lib.bench.records.files` reads it back.

Introduced in chapter 1.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lib.bench.measure.machine import fingerprint, hardware
from lib.bench.measure.roofline import Roofline, dtype_name
from lib.bench.measure.system_load import LoadMonitor
from lib.bench.paths import repository
from lib.bench.records.ceilings import keep, reading_of
from lib.bench.records.chapter_clock import chapter_seconds
from lib.bench.records.files import SCHEMA, read_record, write_json
from lib.bench.records.load_notes import load_facts
from lib.bench.records.series import Series, check_value, make_series
from lib.bench.records.source_digest import source_digest
from lib.bench.scale import SCALES, scale
from lib.bench.script_options import options


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
            raise ValueError(
                f"chapter={chapter!r}: must be the name of the chapter's script, without folder and .py"
            )
        if not isinstance(model, str) or not model.strip():
            raise ValueError(f"model={model!r}: must be a non-empty name")
        if weights not in ("real", "random"):
            raise ValueError(f"weights={weights!r}: must be 'real' or 'random'")
        self.chapter, self.model, self.weights, self.dtype = (
            chapter,
            model,
            weights,
            dtype_name(dtype),
        )
        self.device, self.seed, self.roofline = device, seed, roofline
        self.series: dict[str, Series] = {}
        self.headlines: list[dict[str, Any]] = []
        # The checks of its experiments; `Experiments.pick` sets it, so that it is asked when the record is written.
        self.gates: Callable[[], list[dict[str, Any]]] = list
        # Start and end only: a sampling thread would disturb what this process measures. The record command watches
        # from outside, samples, and replaces this by what it saw.
        self._load = LoadMonitor(interval=None).start() if options().record else None

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
        self.series[name] = make_series(
            name, unit, columns, points, params, self.seed if seed is None else seed
        )
        if (folder := options().record) is not None and scale() != "smoke":
            self._save_partial(Path(folder))
        return self.series[name]

    def __getitem__(self, name: str) -> Series:
        return self.series[name]

    def headline(self, text: str, value: float, unit: str = "") -> None:
        """A figure for the scoreboard and for the record command's table; the first one is the chapter's own."""
        self.headlines.append(
            {"text": text, "value": check_value(value, f"headline {text!r}"), "unit": unit}
        )

    def to_json(self) -> dict[str, Any]:
        """The record as plain data."""
        result = {
            "schema": SCHEMA,
            "chapter": self.chapter,
            "scale": scale(),
            "model": self.model,
            "weights": self.weights,
            "dtype": self.dtype,
            "seconds": round(chapter_seconds(), 3),
            "headlines": self.headlines,
            "gates": self.gates(),
            "roofline": None,
            "fingerprint": {**fingerprint(self.device), "load": self._load_until_now()},
            "source": source_digest(_script(self.chapter)),
            "measurements": {name: series.to_json() for name, series in self.series.items()},
        }
        if self.roofline is not None:
            result["roofline"] = {
                "bandwidth": self.roofline.bandwidth, "flops": self.roofline.flops, "details": self.roofline.details,
                "spread": self.roofline.spread,
            }  # fmt: skip
        return check_value(result, self.chapter)

    def _load_until_now(self) -> dict[str, Any]:
        load = self._load.stop() if self._load else None
        return load_facts(before=None, during=load)

    def save(self, folder: Path | str) -> Path:
        """Writes `<folder>/<hardware slug>/<chapter>.json`, whole or not at all, and returns its path.

        Raises ValueError without measurements, or where it would replace a record of a larger scale.
        """
        if not self.series:
            raise ValueError(f"{self.chapter}: nothing was measured, so there is nothing to save")
        data = self.to_json()
        path = self._path(Path(folder))
        there = read_record(path)
        if there is not None and SCALES.index(there["scale"]) > SCALES.index(data["scale"]):
            raise ValueError(
                f"{path} holds a record at {there['scale']} scale: {data['scale']} must not replace it"
            )
        keep(path.parent, reading_of(there))  # the machine's range outlives the record
        write_json(path, data)
        _partial(path).unlink(missing_ok=True)
        return path

    def _save_partial(self, folder: Path) -> None:
        """Keeps what has been measured so far beside the record: a chapter that fails later would lose it."""
        data = {
            "chapter": self.chapter,
            "scale": scale(),
            "model": self.model,
            "weights": self.weights,
            "dtype": self.dtype,
            "measurements": {name: series.to_json() for name, series in self.series.items()},
        }
        write_json(_partial(self._path(folder)), check_value(data, self.chapter))

    def _path(self, folder: Path) -> Path:
        return folder / hardware(self.device)["slug"] / f"{self.chapter}.json"

    def finish(self) -> Path | None:
        """The last line of a chapter: saves where `--record DIR` asks for it, does nothing otherwise."""
        folder = options().record
        return None if folder is None else self.save(folder)


def _partial(path: Path) -> Path:
    """The name does not end in .json, so that nothing takes it for a record."""
    return path.with_name(path.name + ".partial")


def _script(chapter: str) -> Path:
    """The chapter's script: the one that runs, when it bears the chapter's name, else the one in `chapters/`."""
    running = Path(sys.argv[0])
    return running if running.stem == chapter else repository() / "chapters" / f"{chapter}.py"
