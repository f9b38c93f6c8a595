"""A Record: what is refused, what is saved, and what survives a round trip."""

import json
import math
import sys

import numpy as np
import pytest
import torch

from lib.bench.measure.roofline import Roofline
from lib.bench.measure.timing import Timing
from lib.bench.records.files import read_records, write_json
from lib.bench.records.record import Record


@pytest.fixture
def record(monkeypatch):
    monkeypatch.setenv("BOOK_SCALE", "cpu")
    roof = Roofline("cpu", 1e9, {"float32": 1e11}, {"mv": 1e9})
    made = Record(
        "02_toy",
        model="gpt2",
        weights="random",
        dtype=torch.float32,
        device="cpu",
        seed=7,
        roofline=roof,
    )
    made.add("latency", unit="s", params={"new_tokens": 50},
             columns={"prompt": [64, 256], "ours": [Timing((3.0, 1.0, 2.0)), 0.5], "peer": [None, np.float32(0.25)]})  # fmt: skip
    made.headline("KV cache", 2.25, "×")
    return made


def test_round_trip_keeps_medians_samples_and_what_it_ran_on(record, tmp_path):
    path = record.save(tmp_path)
    assert (
        path.parent.name == record.to_json()["fingerprint"]["hardware"]["slug"]
        and path.name == "02_toy.json"
    )
    (run,) = read_records("02", folder=tmp_path)
    series = run["latency"]
    assert (
        series["ours"] == [2.0, 0.5]
        and series["peer"] == [None, 0.25]
        and series["prompt"] == [64, 256]
    )
    assert (
        series.samples == {"ours": [[3.0, 1.0, 2.0], []]}
        and series.seed == 7
        and series.unit == "s"
    )
    assert series.rows()[0] == {"prompt": 64, "ours": 2.0, "peer": None}
    assert (run.scale, run.weights, run.dtype, run.model) == ("cpu", "random", "float32", "gpt2")
    assert (
        run["absent"] is None and run.roofline.rate() == 1e11 and run.headlines[0]["value"] == 2.25
    )
    assert run.fingerprint["versions"]["torch"] == torch.__version__ and len(run.date) == 10
    with pytest.raises(AttributeError):
        _ = run.nonsense
    with pytest.raises(KeyError, match="no column 'other'; it has prompt, ours, peer"):
        series["other"]


@pytest.mark.parametrize("change", [
    {"chapter": ""}, {"chapter": "../escape"}, {"model": " "}, {"weights": "borrowed"},
])  # fmt: skip
def test_record_refuses(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Record(
            **{"chapter": "01_x", "model": "gpt2", "weights": "real", "dtype": "float32", **change}
        )


def test_a_name_is_added_once_and_an_empty_record_is_not_saved(record, tmp_path):
    with pytest.raises(ValueError, match="already"):
        record.add("latency", unit="s", columns={"x": [1]})
    with pytest.raises(ValueError, match="nothing was measured"):
        Record("01_x", model="m", weights="real", dtype="float32", device="cpu").save(tmp_path)
    with pytest.raises(ValueError, match="headline"):
        record.headline("bad", math.nan)


def test_a_smaller_scale_never_replaces_a_larger_one(record, tmp_path, monkeypatch):
    path = record.save(tmp_path)
    record.save(tmp_path)
    monkeypatch.setenv("BOOK_SCALE", "smoke")
    before = path.read_text()
    with pytest.raises(ValueError, match="cpu scale: smoke must not"):
        record.save(tmp_path)
    assert path.read_text() == before


def test_smoke_and_own_hardware_are_left_out(record, tmp_path, monkeypatch):
    record.save(tmp_path)
    other = record.to_json()
    other["fingerprint"]["hardware"].update(slug="nvidia-h200", label="NVIDIA H200")
    write_json(tmp_path / "nvidia-h200" / "02_toy.json", other)
    assert [run.label for run in read_records("02_toy", others_only=True, folder=tmp_path)] == [
        "NVIDIA H200"
    ]
    assert (
        len(read_records("02", folder=tmp_path)) == 2 and read_records("03", folder=tmp_path) == []
    )
    monkeypatch.setenv("BOOK_SCALE", "smoke")
    write_json(tmp_path / "nvidia-h200" / "02_toy.json", {**other, "scale": "smoke"})
    assert len(read_records("02", folder=tmp_path)) == 1


def test_finish_writes_only_when_asked(record, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["02_toy.py"])
    assert record.finish() is None
    monkeypatch.setattr(sys, "argv", ["02_toy.py", "--record", str(tmp_path)])
    assert record.finish().is_file()


def test_what_was_measured_outlives_a_chapter_that_fails(record, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["02_toy.py", "--record", str(tmp_path)])
    record.add("memory", unit="B", columns={"x": [1]})
    (partial,) = tmp_path.glob("*/02_toy.json.partial")
    kept = json.loads(partial.read_text())
    assert list(kept["measurements"]) == ["latency", "memory"] and kept["scale"] == "cpu"
    assert read_records("02", folder=tmp_path) == []
    path = record.finish()
    assert path.parent == partial.parent and not partial.exists()


def test_its_seconds_are_the_chapters_and_not_its_own(record, monkeypatch):
    monkeypatch.setattr("lib.bench.records.record.chapter_seconds", lambda: 61.2345)
    assert record.to_json()["seconds"] == 61.234
