"""Records: what is refused, what survives a round trip, and that a file is whole or absent."""

import json
import math
import sys

import numpy as np
import pytest
import torch

from lib.bench.measure.roofline import Roofline
from lib.bench.measure.timing import Timing
from lib.bench.records import files as stored
from lib.bench.records.files import Reference, read_record, read_records, reference, write_json
from lib.bench.records.record import Record, source_digest
from lib.bench.records.series import make_series


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


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), torch.tensor(math.inf),
                                   Timing((1.0, math.nan))])  # fmt: skip
def test_no_nan_and_no_infinity(value):
    with pytest.raises(ValueError, match="toy"):
        make_series("toy", "s", columns={"x": [1.0, value]})


def test_nan_in_samples_alone_is_found_too():
    with pytest.raises(ValueError, match=r"toy.x samples\[0\]\[3\] is nan"):
        make_series("toy", "s", columns={"x": [_Hidden((1.0, 1.0, 1.0, math.nan))]})


class _Hidden(Timing):
    @property
    def median(self):
        return 1.0


@pytest.mark.parametrize("arguments, message", [
    (dict(name=" ", unit="s", columns={"x": [1]}), "non-empty"),
    (dict(name="toy", unit="", columns={"x": [1]}), "unit"),
    (dict(name="toy", unit="s", columns={"": [1]}), "column of toy"),
    (dict(name="toy", unit="s", columns={"x": [1], "y": [1, 2]}), "differ in length"),
    (dict(name="toy", unit="s", columns={"x": []}), "no data"),
    (dict(name="toy", unit="s", points=[]), "no data"),
    (dict(name="toy", unit="s"), "either"),
    (dict(name="toy", unit="s", columns={"x": [1]}, points=[{"x": 1}]), "either"),
    (dict(name="toy", unit="s", points=[{"x": 1}, {"y": 1}]), "point 1"),
    (dict(name="toy", unit="s", columns={"x": [object()]}), "object"),
    (dict(name="toy", unit="s", columns={"x": [1]}, params={"p": math.nan}), "params.p"),
])  # fmt: skip
def test_series_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_series(**arguments)


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


def test_points_are_columns_by_rows():
    points = [{"batch": 1, "rate": 2.0}, {"batch": 2, "rate": 3.5}]
    series = make_series("toy", "1/s", points=points)
    assert series.columns == {"batch": [1, 2], "rate": [2.0, 3.5]} and series.rows() == points


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a" / "x.json"
    write_json(path, {"schema": 1})
    with pytest.raises(ValueError):
        write_json(path, {"x": math.nan})
    monkeypatch.setattr(
        stored.os, "replace", lambda *a: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError):
        write_json(path, {"schema": 2})
    assert json.loads(path.read_text()) == {"schema": 1} and [
        p.name for p in path.parent.iterdir()
    ] == ["x.json"]


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


@pytest.mark.parametrize("text", ['{"schema": 1', "[]", '{"schema": 99}'])
def test_what_is_no_record_is_said_so(tmp_path, text):
    path = tmp_path / "x.json"
    assert read_record(path) is None
    path.write_text(text)
    with pytest.raises(ValueError, match="x.json"):
        read_record(path)


def test_finish_writes_only_when_asked(record, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["02_toy.py"])
    assert record.finish() is None
    monkeypatch.setattr(sys, "argv", ["02_toy.py", "--record", str(tmp_path)])
    assert record.finish().is_file()


def test_the_digest_follows_the_script(tmp_path):
    script = tmp_path / "02_toy.py"
    script.write_text("a = 1")
    first = source_digest(script)
    assert first == source_digest(script)
    script.write_text("a = 2")
    assert first != source_digest(script)


def test_the_published_figures():
    path = stored.measurements_dir() / "reference" / "seed_results.json"
    if not path.is_file():
        with pytest.raises(FileNotFoundError):
            reference()
        return
    published = reference()
    assert (
        published["headline"]["batch_gain_512"] == 118.3
        and "A100" in published.label
        and published.source
    )
    assert isinstance(published, Reference)
