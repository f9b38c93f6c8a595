"""A machine's ceilings over all of its known runs: on a shared or virtual machine, one reading is not the machine.

`python -m lib.bench.records.ceilings --times 6 --pause 600` measures them anew, several times over an hour, and adds
each reading that other programs did not disturb to `book/measurements/<hardware>/ceilings.json`. The readings of records
count as well; where a record is replaced, its reading moves into that file.

Introduced in chapter 1.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lib.bench.measure.machine import default_device, hardware
from lib.bench.measure.roofline import Roofline, measure_rounds
from lib.bench.measure.system_load import LoadMonitor
from lib.bench.paths import measurements_dir
from lib.bench.records.files import read_record, write_json
from lib.bench.records.load_notes import was_disturbed

FILE = "ceilings.json"
Reading = dict[str, Any]  # date, threads, bandwidth (B/s), flops {dtype: FLOP/s}


def known_readings(folder: Path, threads: int) -> list[Reading]:
    """Readings of one hardware with this number of threads, oldest first: those of its records and of `ceilings.json`.

    Chapters of one build share a reading, which counts once. Raises ValueError for a file that is no such list.
    """
    found = _kept(folder)
    for path in sorted(folder.glob("[0-9][0-9]_*.json")):
        if (reading := reading_of(read_record(path))) is not None:
            found.append(reading)
    return _distinct([r for r in found if r["threads"] == threads])


def reading_of(record: Mapping[str, Any] | None) -> Reading | None:
    """A record's reading; None where it has none, is a smoke run, or was disturbed by other programs."""
    if not record or not record.get("roofline") or record["scale"] == "smoke":
        return None
    if was_disturbed(dict(record)):
        return None
    facts, ceilings = record["fingerprint"], record["roofline"]
    return {
        "date": facts["date"],
        "threads": facts.get("threads", {}).get("torch"),
        "bandwidth": ceilings["bandwidth"],
        "flops": dict(ceilings["flops"]),
    }


def runs_of(folder: Path, threads: int) -> dict[str, list[float]]:
    """By "bandwidth" (B/s) and dtype (FLOP/s), the value of every known reading, oldest first."""
    runs: dict[str, list[float]] = {}
    for reading in known_readings(folder, threads):
        for name, rate in {"bandwidth": reading["bandwidth"], **reading["flops"]}.items():
            runs.setdefault(name, []).append(rate)
    return runs


def runs_of_this_machine(device: torch.device | str | None = None) -> dict[str, list[float]]:
    """`runs_of` the recorded runs of this hardware, with as many threads as PyTorch uses now."""
    return runs_of(measurements_dir() / hardware(device)["slug"], torch.get_num_threads())


def with_runs(roofline: Roofline, folder: Path, threads: int) -> Roofline:
    """The same ceilings with `runs`, for `Gate.machine`."""
    return replace(roofline, runs=runs_of(folder, threads))


def keep(folder: Path, reading: Reading | None) -> None:
    """Adds a reading to the folder's `ceilings.json`, unless it is there already or is None."""
    if reading is None:
        return
    kept = _kept(folder)
    readings = _distinct([*kept, reading])
    if readings != kept:
        write_json(folder / FILE, {"unit": "B/s and FLOP/s", "readings": readings})


def _kept(folder: Path) -> list[Reading]:
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        return list(json.loads(path.read_text())["readings"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} must hold an object with a list `readings`") from None


def _distinct(readings: list[Reading]) -> list[Reading]:
    """One reading for each measurement: chapters of one build have the same bandwidth, to the last digit."""
    found: dict[tuple[float, int | None], Reading] = {}
    for reading in sorted(readings, key=lambda reading: reading["date"]):
        key = (reading["bandwidth"], reading["threads"])
        first = found.setdefault(key, reading)
        found[key] = {**first, "flops": {**reading["flops"], **first["flops"]}}
    return list(found.values())


def measure_once(device: torch.device) -> tuple[Reading, str]:
    """(a new reading, why it must not be kept: empty where nothing else used the machine)."""
    monitor = LoadMonitor().start()
    found = measure_rounds(device, ("float32", "bfloat16"))
    load = monitor.stop()
    reading = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "threads": torch.get_num_threads(),
        "bandwidth": found.bandwidth,
        "flops": found.flops,
    }
    busy = device.type == "cpu" and load is not None and load.disturbed
    return reading, str(load) if busy else ""


def main(argv: list[str] | None = None) -> int:
    """The command. Returns 0 when at least one reading was kept, 1 when all were disturbed."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.bench.records.ceilings",
        description="Measure this machine's ceilings several times, for the range that the gates allow.",
    )
    parser.add_argument("--times", type=int, default=6, help="readings (6)")
    parser.add_argument("--pause", type=float, default=600, help="seconds between two (600)")
    parser.add_argument("--out", type=Path, default=measurements_dir())
    args = parser.parse_args(argv)
    if args.times < 1 or args.pause < 0:
        parser.error(f"--times must be at least 1 and --pause at least 0, got {args.times}, {args.pause}")  # fmt: skip
    device = default_device()
    folder, kept = args.out / hardware(device)["slug"], 0
    for i in range(args.times):
        time.sleep(args.pause if i else 0)
        reading, busy = measure_once(device)
        said = f"not kept: {busy}" if busy else "kept"
        print(f"{reading['date']}  {reading['bandwidth'] / 1e9:.1f} GB/s  {said}", flush=True)
        if not busy:
            keep(folder, reading)
            kept += 1
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
