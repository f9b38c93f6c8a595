"""One roofline for one machine: measured in turns, kept on disk, shared by the next caller, measured anew when it must."""

import json

import pytest

from lib.bench.measure import roofline as module
from lib.bench.measure.roofline import ROUNDS, machine_roofline


@pytest.fixture
def calls(monkeypatch):
    """Counts the measurements instead of making them; the rates differ from round to round."""
    made = []

    def bandwidth(device, quick=False):
        made.append("bandwidth")
        rate = 10.0 + made.count("bandwidth")
        return {"mv": rate / 2, "sum": rate}

    def matmul(device, dtype, quick=False):
        made.append(dtype)
        return 100.0 + made.count(dtype)

    monkeypatch.setattr(module, "measure_bandwidth", bandwidth)
    monkeypatch.setattr(module, "measure_matmul", matmul)
    monkeypatch.setenv("BOOK_SCALE", "cpu")
    return made


def test_rounds_are_taken_in_turns_and_give_a_median_and_a_spread(calls, tmp_path):
    found = machine_roofline("cpu", ("float32", "bfloat16"), folder=tmp_path)
    assert calls == ["bandwidth", "float32", "bfloat16"] * ROUNDS
    assert found.bandwidth == 13.0 and found.flops == {"float32": 103.0, "bfloat16": 103.0}
    assert found.details == {"mv": 6.5, "sum": 13.0}
    assert found.spread["bandwidth"] == pytest.approx(4 / 13)
    assert found.spread["float32"] == pytest.approx(4 / 103)


def test_the_next_caller_measures_nothing_that_is_there(calls, tmp_path):
    first = machine_roofline("cpu", ("float32",), folder=tmp_path)
    made = len(calls)
    assert machine_roofline("cpu", ("float32",), folder=tmp_path) == first and len(calls) == made
    both = machine_roofline("cpu", ("float32", "bfloat16"), folder=tmp_path)
    assert calls[made:] == ["bfloat16"] * ROUNDS and both.bandwidth == first.bandwidth
    assert len(list(tmp_path.iterdir())) == 1


def test_another_number_of_threads_is_another_machine(calls, tmp_path, monkeypatch):
    machine_roofline("cpu", ("float32",), folder=tmp_path)
    monkeypatch.setattr(module.torch, "get_num_threads", lambda: 7)
    machine_roofline("cpu", ("float32",), folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 and calls.count("float32") == 2 * ROUNDS


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"rounds": {"sum": "x"}}', '{"rounds": {"sum": []}}']
)
def test_a_broken_file_is_measured_anew(calls, tmp_path, text):
    machine_roofline("cpu", ("float32",), folder=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(text)
    machine_roofline("cpu", ("float32",), folder=tmp_path)
    assert calls.count("bandwidth") == 2 * ROUNDS
    assert set(json.loads(path.read_text())["rounds"]) == {"mv", "sum", "float32"}


def test_a_folder_that_cannot_be_written_still_gives_a_roofline(calls, tmp_path):
    (tmp_path / "file").write_text("")
    assert machine_roofline("cpu", ("float32",), folder=tmp_path / "file" / "x").bandwidth == 13.0


def test_smoke_scale_keeps_nothing(calls, tmp_path, monkeypatch):
    monkeypatch.setenv("BOOK_SCALE", "smoke")
    found = machine_roofline("cpu", ("float32",), folder=tmp_path)
    assert list(tmp_path.iterdir()) == [] and calls == ["bandwidth", "float32"]
    assert found.spread == {}
