"""A machine's ceilings over its runs: each measurement once, none that was disturbed, none lost with its record."""

import json

import pytest
import torch

from lib.bench.measure.roofline import Roofline
from lib.bench.measure.system_load import Load
from lib.bench.records import ceilings
from lib.bench.records.ceilings import keep, known_readings, with_runs
from lib.bench.records.files import SCHEMA, read_record, write_json
from lib.bench.records.record import Record

QUIET = Load(10.0, 2, 0.01, 0.1, 0.0, 0.0)
BUSY = Load(10.0, 2, 0.6, 0.9, 0.9, 0.0)


def record(bandwidth, flops, date="2026-01-02T00:00:00", threads=2, scale="cpu", load=QUIET):
    return {
        "schema": SCHEMA, "scale": scale, "measurements": {},
        "roofline": {"bandwidth": bandwidth, "flops": flops, "details": {}},
        "fingerprint": {"date": date, "threads": {"torch": threads}, "load": {"disturbed": load.disturbed}},
    }  # fmt: skip


def reading(bandwidth, date="2026-01-01T00:00:00", threads=2, **flops):
    return {"date": date, "threads": threads, "bandwidth": bandwidth, "flops": flops}


def test_chapters_of_one_build_are_one_reading_with_all_its_dtypes(tmp_path):
    write_json(tmp_path / "01_a.json", record(78e9, {"float32": 2e11, "bfloat16": 8e11}))
    write_json(tmp_path / "02_b.json", record(78e9, {"float32": 2e11}))
    write_json(tmp_path / "03_c.json", record(44e9, {"float32": 1e11}, date="2026-01-03T00:00:00"))
    found = with_runs(Roofline("cpu", 1.0, {}), tmp_path, threads=2)
    assert found.runs == {
        "bandwidth": [78e9, 44e9],
        "float32": [2e11, 1e11],
        "bfloat16": [8e11],
    }


@pytest.mark.parametrize(
    "change", [{"scale": "smoke"}, {"load": BUSY}, {"threads": 1}],
)  # fmt: skip
def test_smoke_disturbed_and_other_threads_do_not_count(tmp_path, change):
    write_json(tmp_path / "01_a.json", record(78e9, {}, **change))
    assert known_readings(tmp_path, threads=2) == []


def test_a_record_without_ceilings_or_an_absent_folder_is_no_reading(tmp_path):
    write_json(tmp_path / "01_a.json", {**record(1.0, {}), "roofline": None})
    assert known_readings(tmp_path, 2) == [] and known_readings(tmp_path / "none", 2) == []


def test_kept_readings_come_once_and_in_order(tmp_path):
    keep(tmp_path, reading(50e9, date="2026-01-05T00:00:00"))
    keep(tmp_path, reading(40e9, float32=1e11))
    keep(tmp_path, reading(40e9, float32=1e11))
    keep(tmp_path, None)
    assert [r["bandwidth"] for r in known_readings(tmp_path, 2)] == [40e9, 50e9]


def test_a_broken_file_is_an_error_with_its_name(tmp_path):
    (tmp_path / "ceilings.json").write_text("[]")
    with pytest.raises(ValueError, match="ceilings.json must hold an object"):
        known_readings(tmp_path, 2)


def test_a_replaced_record_leaves_its_reading(tmp_path, monkeypatch):
    monkeypatch.setenv("BOOK_SCALE", "cpu")
    threads = torch.get_num_threads()
    for bandwidth in (78e9, 44e9):
        made = Record(
            "02_toy", model="gpt2", weights="random", dtype="float32", device="cpu",
            roofline=Roofline("cpu", bandwidth, {"float32": 1e11}, spread={"bandwidth": 0.1}),
        )  # fmt: skip
        made.add("latency", unit="s", columns={"x": [1]})
        path = made.save(tmp_path)
    assert [r["bandwidth"] for r in known_readings(path.parent, threads)] == [78e9, 44e9]
    assert read_record(path)["roofline"]["spread"] == {"bandwidth": 0.1}


@pytest.mark.parametrize("load, status, kept", [(QUIET, 0, 2), (BUSY, 1, 0), (None, 0, 2)])
def test_the_command_keeps_what_nothing_disturbed(
    tmp_path, monkeypatch, capsys, load, status, kept
):
    rates = iter((5e9, 4e9))

    class Monitor:
        def start(self):
            return self

        def stop(self):
            return load

    monkeypatch.setattr(ceilings, "LoadMonitor", Monitor)
    monkeypatch.setattr(
        ceilings, "measure_rounds", lambda *_: Roofline("cpu", next(rates), {"float32": 1e11})
    )
    monkeypatch.setattr(ceilings, "hardware", lambda _: {"slug": "toy"})
    monkeypatch.setattr(ceilings, "default_device", lambda: torch.device("cpu"))
    assert ceilings.main(["--times", "2", "--pause", "0", "--out", str(tmp_path)]) == status
    assert ("not kept: other programs used 60 %" in capsys.readouterr().out.replace("%", " %")) == (
        status == 1
    )
    path = tmp_path / "toy" / "ceilings.json"
    found = json.loads(path.read_text())["readings"] if path.exists() else []
    assert len(found) == kept


def test_the_command_refuses_no_readings(capsys):
    with pytest.raises(SystemExit):
        ceilings.main(["--times", "0"])
    assert "--times must be at least 1" in capsys.readouterr().err
