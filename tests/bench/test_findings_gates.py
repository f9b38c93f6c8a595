"""Gates that close for a stated reason, the run that is shown instead, predictions and their verdicts."""

import json
import shutil
from pathlib import Path

import pytest

from lib.bench.findings.curves import trend
from lib.bench.findings.gates import Experiments, Gate
from lib.bench.findings.predictions import HEADERS, Prediction, predictions_table, tally
from lib.bench.findings.vocabulary import MISSING
from lib.bench.measure.machine import hardware
from lib.bench.measure.roofline import Roofline
from lib.bench.measure.timing import Timing, measure_in_turns
from lib.bench.notebook import glue as glue_module
from lib.bench.notebook.glue import plain, say
from lib.bench.notebook.style import caution, figure
from lib.bench.records.files import read_records
from lib.bench.records.record import Record

STEADY, WILD = Timing((1.0, 1.01, 1.02)), Timing((1.0, 1.5, 2.0))


def roofline(bandwidth=10e9, flops=100e9):
    return Roofline("cpu", bandwidth, {"float32": flops})


def test_a_gate_is_open_until_a_check_fails():
    gate = Gate("latency")
    assert gate.repeats([STEADY]) and gate.quiet(None) and gate.machine(roofline(), None)
    assert gate.quiet({"others_mean": 0.1, "others_max": 0.9})
    assert gate.queue_formed(None) and gate.limit_reached(None, 6, "seats") and gate.enough(9, 9)
    assert gate.queue_formed(3) and gate.limit_reached(6, 6, "seats")
    assert gate.machine(roofline(), roofline(11e9)) and gate.repeats([None])
    assert gate.ok and gate.note == "" and gate.pick("this", None).label == "this run"


@pytest.mark.parametrize(
    "close, reason",
    [
        (lambda g: g.repeats([STEADY, WILD]), "the repeats differ by 67 %, more than 25 %"),
        (lambda g: g.repeats([Timing((1.0,))], "offline"), "fewer than 2 repeats of offline"),
        (lambda g: g.repeats([2.0]), "fewer than 2 repeats"),
        (lambda g: g.quiet({"others_mean": 0.8, "others_max": 0.9}), "other programs used 0.8 cores on average while it ran"),
        (lambda g: g.quiet({"others_mean": 0.1, "others_max": 1.9}), "other programs used up to 1.9 cores while it ran"),
        (lambda g: g.machine(roofline(5e9), roofline()), "memory bandwidth at 5 GB/s is 0.50 times this machine's record"),
        (lambda g: g.machine(roofline(flops=2e11), roofline()), "float32 products at 200 GFLOP/s are 2 times this machine's record"),
        (lambda g: g.queue_formed(0), "no queue formed (at most 0 waited, needed 1)"),
        (lambda g: g.limit_reached(4, 6, "seats"), "the limit was not reached (4 of 6 seats)"),
        (lambda g: g.enough(13, 96), "too few requests (13, needed 96)"),
        (lambda g: g.check(False, "the prefix cache held nothing"), "the prefix cache held nothing"),
    ],
)  # fmt: skip
def test_a_gate_says_why_it_closed(close, reason):
    gate = Gate("latency")
    assert not close(gate)
    assert gate.reasons == [reason] and gate.note == f"this run cannot show it: {reason}"


def test_repeats_that_are_few_and_wide_give_both_reasons_once():
    gate = Gate("latency")
    for _ in range(2):
        gate.repeats([WILD, Timing((1.0,))])
    assert len(gate.reasons) == 2


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A folder with chapter 1's record under this machine's own name, at cpu scale."""
    monkeypatch.setenv("BOOK_SCALE", "cpu")
    data = json.loads((Path(__file__).with_name("frozen") / "01_forward_pass.json").read_text())
    data["fingerprint"]["hardware"] = hardware("cpu")
    folder = tmp_path / hardware("cpu")["slug"]
    folder.mkdir()
    (folder / "01_forward_pass.json").write_text(json.dumps(data))
    return tmp_path


def this_run():
    record = Record(
        "01_forward_pass", model="gpt2", weights="random", dtype="float32", device="cpu"
    )
    record.add("latency_by_prompt", unit="s", columns={"prompt": [8], "no_cache": [STEADY]})
    return record


def test_the_recorded_run_of_this_hardware_takes_the_place(recorded):
    experiments = Experiments("01_forward_pass", "cpu", folder=recorded)
    first, second = experiments.gate("latency"), experiments.gate("throughput")
    second.enough(3, 10, "answers")
    record = this_run()
    shown = experiments.pick(first, record)
    assert not shown.recorded and shown.note == "" and shown["latency_by_prompt"]["prompt"] == [8]
    assert shown["no_such_series"] is None
    other = experiments.pick(second, record)
    assert other.recorded and other.label == "recorded run of 2026-11-24"
    assert other["latency_by_prompt"]["prompt"] == [64, 256, 512] and other["no_such"] is None
    assert other.note.endswith("(3, needed 10); the recorded run of 2026-11-24 is shown instead")
    assert experiments.roofline.bandwidth == other.roofline.bandwidth
    said = experiments.summary()
    assert said.startswith("This copy could not show 1 of its 2 experiments: throughput (too few")
    assert "recorded run of 2026-11-24" in said
    assert [gate["ok"] for gate in experiments.to_json()] == [True, False]


def test_without_a_record_this_run_stays_with_a_note(recorded):
    shutil.rmtree(recorded / hardware("cpu")["slug"])
    experiments = Experiments("01_forward_pass", "cpu", folder=recorded)
    gate = experiments.gate("latency")
    assert experiments.summary().startswith("All experiments on this page")
    gate.check(False, "the clock stood still")
    shown = experiments.pick(gate, this_run())
    assert not shown.recorded and "no recorded run of this hardware" in shown.note
    assert "There is no recorded run of this hardware" in experiments.summary()


def test_a_run_that_is_being_recorded_shows_itself(recorded, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["chapter.py", "--record", str(tmp_path)])
    experiments = Experiments("01_forward_pass", "cpu", folder=recorded)
    gate = experiments.gate("latency")
    gate.check(False, "the clock stood still")
    assert not experiments.pick(gate, this_run()).recorded


def test_a_smoke_run_shows_nothing(recorded, monkeypatch):
    monkeypatch.setenv("BOOK_SCALE", "smoke")
    experiments = Experiments("01_forward_pass", "cpu", folder=recorded)
    gates = [experiments.gate(name) for name in ("latency", "throughput", "profile")]
    assert not any(gate.ok for gate in gates)
    said = experiments.summary()
    assert "latency, throughput and profile (it is a test run at the smallest sizes)" in said


PREDICTIONS = [
    Prediction("time", 1.0, 1.05, "the bound holds"),
    Prediction("time", 1.0, 1.2),
    Prediction("time", 1.0, 0.8),
    Prediction("time", 1.2e-3, 3.1e-3, "a slow product"),
    Prediction("time", 1.0, None),
    Prediction("time", 1.0, WILD),
    Prediction("gain", 4, 9.0, unit="×", sense="at least"),
    Prediction("gain", 4, 2.0, unit="×", sense="at least"),
    Prediction("shape", "falls", trend([1, 2], [3, 2]), unit=""),
    Prediction("shape", "falls", trend([1, 2], [2, 3]), unit=""),
    Prediction("shape", "falls", trend([1, 2], [None, 3]), unit=""),
]
VERDICTS = ["as predicted", "a little above", "a little below", "the prediction failed", MISSING, "this run cannot tell",
            "as predicted", "the prediction failed", "as predicted", "the prediction failed", MISSING]  # fmt: skip


def test_predictions_get_verdicts():
    assert [p.verdict for p in PREDICTIONS] == VERDICTS
    row = PREDICTIONS[3].row()
    assert row == ["time", "1.20 ms", "3.10 ms", "2.6", "the prediction failed", "a slow product"]
    assert PREDICTIONS[6].row()[1:4] == ["at least 4 ×", "9 ×", "2.2"]
    assert PREDICTIONS[9].row()[1:3] == ["falls", "rises from 2 to 3"]
    said = (
        "11 predictions: 3 as predicted, 2 a little off, 3 failed, 1 that this run cannot judge, "
    )
    assert tally(PREDICTIONS) == said + "2 that were not measured here"
    assert tally([]) == "0 predictions: none"


def test_the_table_of_predictions_is_printed_in_a_script(capsys):
    predictions_table(PREDICTIONS)
    lines = capsys.readouterr().out.splitlines()
    assert all(header in lines[0] for header in HEADERS) and len(lines) == 2 + len(PREDICTIONS)


def test_a_prediction_refuses_words_against_numbers():
    with pytest.raises(ValueError, match="predicted word needs"):
        Prediction("x", "falls", 3.0)
    with pytest.raises(ValueError, match="sense"):
        Prediction("x", 1.0, 3.0, sense="roughly")


def test_glued_text_is_plain_and_said_text_is_markdown(monkeypatch, capsys):
    assert plain("use **both** of `a` and `b`, 2 * 3 * 4") == "use both of a and b, 2 * 3 * 4"
    glued = {}
    monkeypatch.setattr(glue_module, "in_notebook", lambda: True)
    import myst_nb

    monkeypatch.setattr(myst_nb, "glue", lambda name, value, display: glued.update({name: value}))
    glue_module.glue_all({"a": "`linear` is **fast**", "b": trend([1, 2], [1, 2])})
    assert {name: repr(value) for name, value in glued.items()} == {
        "a": "'linear is fast'",
        "b": "'rises from 1 to 2'",
    }
    monkeypatch.setattr(glue_module, "in_notebook", lambda: False)
    say("`linear` is **fast**")
    assert capsys.readouterr().out == "linear is fast\n"


def test_a_figure_says_what_its_gate_says():
    _, ax = figure()
    caution(ax, "")
    assert ax.get_title("left") == ""
    caution(
        ax,
        "this run cannot show it: fewer than 2 repeats; the recorded run of 2026-11-24 is shown instead",
    )
    title = ax.get_title("left")
    assert title.startswith("This run cannot") and title.endswith(".") and "\n" in title


def test_turns_interleave_and_leave_warmup_out():
    calls = []
    found = measure_in_turns(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, device="cpu"
    )
    assert calls == ["a", "b"] * 4 and all(len(t.samples) == 3 for t in found.values())
    with pytest.raises(ValueError):
        measure_in_turns({})


def test_the_books_own_records_are_found_by_hardware():
    (run,) = read_records("01_forward_pass")
    assert run["latency_by_prompt"] is not None
