"""Gates that close for a stated reason, the run that is shown instead, predictions and their verdicts."""

import json
import shutil
import time
from pathlib import Path

import pytest
from matplotlib.text import Text

from lib.bench.findings import experiments as experiments_module
from lib.bench.findings import machine_rates
from lib.bench.findings.curves import trend
from lib.bench.findings.experiments import Experiments
from lib.bench.findings.gates import Gate
from lib.bench.findings.predictions import HEADERS, Prediction, predictions_table, tally
from lib.bench.findings.vocabulary import MISSING
from lib.bench.measure import system_load
from lib.bench.measure.machine import hardware
from lib.bench.measure.roofline import Roofline
from lib.bench.measure.system_load import Load
from lib.bench.measure.timing import Timing, measure_in_turns
from lib.bench.notebook import glue as glue_module
from lib.bench.notebook.glue import plain, say
from lib.bench.notebook.style import caution, caution_below, figure, save
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


def test_one_slow_repeat_of_five_closes_no_gate():
    """The median of five is the same whether the slowest took 1.1 or 9 s; of three repeats the range counts."""
    gate = Gate("latency")
    assert gate.repeats([[1.0, 1.02, 1.05, 1.1, 9.0]]) and gate.repeats(
        [[0.2, 1.0, 1.02, 1.05, 1.1]]
    )
    assert not Gate("latency").repeats([[1.0, 1.05, 9.0]])


@pytest.mark.parametrize(
    "close, reason",
    [
        (lambda g: g.repeats([STEADY, WILD]), "the repeats differ by 67 %, more than 25 %"),
        (lambda g: g.repeats([Timing((1.0,))], "offline"), "fewer than 2 repeats of offline"),
        (lambda g: g.repeats([2.0]), "fewer than 2 repeats"),
        (lambda g: g.repeats([[1.0, 1.1, 1.3, 1.7, 2.0]]), "the middle half of the repeats differs by 46 %, more than 25 %"),
        (lambda g: g.quiet({"others_mean": 0.8, "others_max": 0.9}), "other programs used 0.8 cores on average while it ran"),
        (lambda g: g.quiet({"others_mean": 0.1, "others_max": 1.9}), "other programs used up to 1.9 cores while it ran"),
        (lambda g: g.machine(roofline(5e9), roofline()), "memory bandwidth at 5 GB/s is 0.50 times this machine's record"),
        (lambda g: g.machine(roofline(flops=2e11), roofline()), "float32 products at 200 GFLOP/s are 2 times this machine's record"),
        (lambda g: g.quiet({"others_mean": 0.1, "steal": 0.5}), "the hypervisor gave 0.5 cores to others on average while it ran"),
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


def with_runs(*bandwidths, record=78e9):
    return Roofline("cpu", record, {"float32": 100e9}, runs={"bandwidth": list(bandwidths)})


@pytest.mark.parametrize(
    "runs, low, high",
    [
        ((), 62.4, 97.5),  # the record alone: a factor of 1.25
        ((78e9,), 62.4, 97.5),
        ((78e9, 75e9, 80e9), 62.4, 97.5),  # a steady machine is not judged more strictly
        ((78e9, 50e9), 50 / 1.1, 97.5),
        ((78e9, 44e9, 100e9), 44 / 1.1, 110),
        ((78e9, 20e9, 300e9), 39, 156),  # never beyond a factor of two
    ],
)
def test_a_machine_that_varies_is_compared_with_its_range(runs, low, high):
    assert machine_rates.allowed(78e9, runs) == pytest.approx((1e9 * low, 1e9 * high))
    for rate, passes in ((1.01 * low, True), (0.99 * low, False), (0.99 * high, True), (1.01 * high, False)):  # fmt: skip
        gate = Gate("latency")
        assert gate.machine(roofline(1e9 * rate), with_runs(*runs)) == passes
        assert gate.ok == passes


def test_what_lies_outside_of_the_range_is_said_with_the_range():
    gate = Gate("latency")
    assert not gate.machine(roofline(30e9), with_runs(78e9, 44e9))
    assert gate.reasons == [
        "memory bandwidth at 30 GB/s is 0.38 times this machine's record, outside of the range of its 2 runs, "
        "44 GB/s to 78 GB/s"
    ]


def test_what_lies_inside_of_the_range_is_not_called_outside_of_it():
    """The runs of one machine may differ by more than a record allows: then the limits are said, not the range."""
    gate = Gate("latency")
    assert not gate.machine(roofline(33e9), with_runs(78e9, 31e9))
    assert gate.reasons == [
        "memory bandwidth at 33 GB/s is 0.42 times this machine's record: a record allows 39 GB/s to 97.5 GB/s"
    ]


def test_the_page_says_when_its_machine_is_as_slow_as_it_can_be(tmp_path, monkeypatch):
    monkeypatch.setenv("BOOK_SCALE", "cpu")
    experiments = Experiments("02_kv_cache", "cpu", folder=tmp_path)
    gate = Gate("latency")
    experiments.gates.append(gate)
    gate.machine(roofline(70e9), with_runs(78e9, 44e9))
    assert "times this machine's record" not in experiments.summary()
    gate.machine(roofline(45e9), with_runs(78e9, 44e9))
    assert gate.ok and experiments.summary().endswith(
        "Memory bandwidth at 45 GB/s is 0.58 times this machine's record, within the range of its 2 runs, 44 GB/s to "
        "78 GB/s: compare its ratios with the record's, and not its times."
    )


def test_a_later_load_replaces_an_earlier_one_and_many_cores_bear_more():
    gate = Gate("latency")
    assert not gate.quiet({"others_mean": 0.8}) and not gate.quiet({"others_mean": 0.9})
    assert gate.reasons == ["other programs used 0.9 cores on average while it ran"]
    assert gate.quiet({"others_mean": 0.1}) and gate.ok
    assert gate.quiet({"others_mean": 3.0, "cores": 64})
    assert not gate.quiet({"others_mean": 3.3, "cores": 64})


def test_repeats_that_are_few_and_wide_give_both_reasons_once():
    gate = Gate("latency")
    for _ in range(2):
        gate.repeats([WILD, Timing((1.0,))])
    assert len(gate.reasons) == 2


class Loads:
    """Stands in for LoadMonitor: each gate gets the next of these loads, in shares of two cores."""

    def __init__(self, *shares, seconds=5.0):
        self.shares, self.seconds = list(shares), seconds

    def __call__(self, interval):
        return self

    def start(self):
        return self

    def stop(self):
        if not self.shares:
            return None
        share = self.shares.pop(0)
        seconds = self.seconds if share is not None else 0.01
        return Load(seconds, 2, share or 0.9, share or 0.9, 0.0, 0.0)


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A folder with chapter 1's record under this machine's own name, at cpu scale."""
    monkeypatch.setenv("BOOK_SCALE", "cpu")
    monkeypatch.setattr(
        experiments_module, "LoadMonitor", Loads()
    )  # whatever else this machine does now
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


def test_each_gate_gets_the_load_since_the_gate_before_it(recorded, monkeypatch):
    monkeypatch.setattr(experiments_module, "LoadMonitor", Loads(0.01, 0.4, None, 0.02))
    experiments = Experiments("01_forward_pass", "cpu", folder=recorded)
    found = [experiments.gate(name) for name in "abcd"]
    # The third follows the second at once: too short for a load of its own, it shares that one.
    assert [gate.ok for gate in found] == [True, False, False, True]
    assert found[1].reasons == found[2].reasons
    assert "other programs used 0.8 cores on average while it ran" in found[1].note
    assert [round(gate["load"]["others_mean"], 2) for gate in experiments.to_json()] == [0.02, 0.8, 0.8, 0.04]  # fmt: skip


def test_beside_a_busy_program_of_others_a_gate_closes(recorded, monkeypatch):
    """With the real monitor: a program that is not this process's child uses a core."""
    monkeypatch.setattr(experiments_module, "LoadMonitor", system_load.LoadMonitor)
    before, after = {"busy": 10.0}, {"busy": 11.5}
    snapshots = iter([before, after, after])
    monkeypatch.setattr(
        system_load, "_snapshot", lambda pid: system_load._Snapshot(own={}, **next(snapshots))
    )
    experiments = Experiments("01_forward_pass", "cpu", folder=recorded)
    time.sleep(0.3)
    gate = experiments.gate("latency")
    assert not gate.ok and "other programs used" in gate.note


def test_on_a_gpu_the_load_is_noted_and_closes_nothing(recorded, monkeypatch):
    monkeypatch.setattr(experiments_module, "LoadMonitor", Loads(0.9, 0.9))
    monkeypatch.setattr(
        experiments_module, "hardware", lambda device: {"slug": "gpu", "kind": "cuda"}
    )
    gate = Experiments("01_forward_pass", "cpu", folder=recorded).gate("latency")
    assert gate.ok and gate.load["others_mean"] == pytest.approx(1.8)


def test_the_record_keeps_the_gates_and_a_later_copy_says_what_they_said(recorded, tmp_path):
    experiments = Experiments("01_forward_pass", "cpu", folder=tmp_path / "none")
    record = this_run()
    assert record.to_json()["gates"] == []
    gate = experiments.gate("latency")
    experiments.pick(gate, record)
    gate.check(False, "the clock stood still")  # after the pick: the record asks when it is written
    record.save(recorded)
    (run,) = read_records("01_forward_pass", folder=recorded)
    assert run.gates[0]["reasons"] == ["the clock stood still"] and not run.gates[0]["ok"]
    again = Experiments("01_forward_pass", "cpu", folder=recorded)
    closed = again.gate("latency")
    closed.enough(1, 9)
    note = again.pick(closed, this_run()).note
    assert note.endswith("shown instead, which could not show it either: the clock stood still")


def test_a_record_without_gates_is_read(recorded):
    (run,) = read_records("01_forward_pass", folder=recorded)
    assert "gates" not in run.data and run.gates == []


def test_the_summary_says_once_what_several_experiments_have_in_common(recorded):
    def summary(*reasons):
        experiments = Experiments("01_forward_pass", "cpu", folder=recorded)
        for name, why in zip(("latency", "throughput", "profile"), reasons):
            gate = experiments.gate(name)
            for reason in why:
                gate.check(False, reason)
        return experiments.summary()

    said = summary(["the clock stood still"], ["the clock stood still", "too few requests"], [])
    assert said.startswith(
        "This copy could not show 2 of its 3 experiments: latency and throughput, because the clock stood still. "
        "Besides: throughput (too few requests). "
    )
    said = summary(["the clock stood still"], ["the clock stood still"])
    assert said.count("the clock stood still") == 1 and "Besides" not in said
    said = summary(["the clock stood still"], ["too few requests"])
    assert "latency (the clock stood still); throughput (too few requests)." in said


def test_the_summary_gives_a_long_reason_of_many_experiments_once(recorded):
    experiments = Experiments("01_forward_pass", "cpu", folder=recorded)
    slow = "float32 products at 132 GFLOP/s are 0.74 times this machine's record"
    for name, reasons in (
        ("a", [slow, "r"]),
        ("b", ["q", slow]),
        ("c", [slow, "q", "r"]),
        ("d", ["q"]),
    ):
        gate = experiments.gate(name)
        gate.reasons = list(reasons)
    said = experiments.summary()
    assert said.count(slow) == 1 and f"{slow} (a, b and c)" in said and "q (b, c and d)" in said


def test_the_summary_claims_no_more_for_the_recorded_run_than_it_has(recorded):
    def summary(*asked, **options):
        experiments = Experiments("01_forward_pass", "cpu", folder=recorded, **options)
        for name, series in asked:
            gate = experiments.gate(name)
            gate.check(False, "the clock stood still")
            record = this_run()
            record.add("stalls", unit="s", columns={"user": [1], "wait": [STEADY]})
            if series is not None:
                assert experiments.pick(gate, record)[series] is not Ellipsis
        return experiments.summary()

    there, missing = ("latency", "latency_by_prompt"), ("stalls", "stalls")
    nowhere = ("tf32", "no_such_series")  # not measured on this hardware at all
    assert summary(there).endswith("Its figures and sentences come from the recorded run of 2026-11-24 on the same hardware.")  # fmt: skip
    assert "Their figures and sentences come from" in summary(there, there)
    said = summary(there, nowhere)
    assert "The figures and sentences of latency come from" in said
    assert said.endswith("Tf32 was measured in neither.")
    assert summary(nowhere).endswith(
        "It was not measured in the recorded run of 2026-11-24 on the same hardware either."
    )
    assert "They were not measured in the recorded" in summary(nowhere, ("fp8", "no_such_series"))
    for asked in ([missing], [("never shown", None)]):
        said = summary(*asked)
        assert "Nothing in the recorded run of" in said and "can take its place" in said
        assert "come from" not in said
    assert "can take their place; read their numbers" in summary(missing, ("never shown", None))
    said = summary(there, missing)
    assert "The figures and sentences of latency come from the recorded run" in said
    assert "For stalls, that run lacks measurements that the page needs" in said
    own = summary(there, own_tables=True)
    assert own.endswith(
        "on the same hardware. The tables of the measurements show this copy's run."
    )


def test_a_figure_has_a_series_also_where_the_recorded_run_has_none(recorded):
    experiments = Experiments("01_forward_pass", "cpu", folder=recorded)
    gate, record = experiments.gate("latency"), this_run()
    record.add("stalls", unit="s", columns={"user": [1], "wait": [STEADY]})
    gate.check(False, "the clock stood still")
    shown = experiments.pick(gate, record)
    series, note = shown.to_draw("latency_by_prompt", record)
    assert series["prompt"] == [64, 256, 512] and note == shown.note
    series, note = shown.to_draw("stalls", record)
    assert series["user"] == [1]
    assert "the clock stood still" in note and "is shown instead" not in note
    assert note.endswith("the recorded run has no such curve") and not gate.stood_in


def test_one_run_for_several_experiments(recorded):
    experiments = Experiments("01_forward_pass", "cpu", folder=recorded)
    first, second = experiments.gate("latency"), experiments.gate("throughput")
    record = this_run()
    assert not experiments.pick_for_all([first, second], record).recorded
    second.check(False, "the clock stood still")
    shown = experiments.pick_for_all([first, second], record)
    assert shown.recorded and "the clock stood still" in shown.note
    assert shown["latency_by_prompt"] is not None and second.stood_in and not first.stood_in


def test_without_a_record_this_run_stays_with_a_note(recorded):
    shutil.rmtree(recorded / hardware("cpu")["slug"])
    experiments = Experiments("01_forward_pass", "cpu", folder=recorded)
    gate = experiments.gate("latency")
    assert experiments.summary().startswith("No experiment on this page was stopped")
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
    closed = [experiments.gate(name) for name in ("latency", "throughput", "profile")]
    assert not any(gate.ok for gate in closed)
    said = experiments.summary()
    assert (
        "latency, throughput and profile, because it is a test run at the smallest sizes." in said
    )


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
            "within the limit", "the prediction failed", "as predicted", "the prediction failed", MISSING]  # fmt: skip


def test_predictions_get_verdicts():
    assert [p.verdict for p in PREDICTIONS] == VERDICTS
    row = PREDICTIONS[3].row()
    assert row == ["time", "1.20 ms", "3.10 ms", "2.6", "the prediction failed", "A slow product"]
    assert PREDICTIONS[6].row()[1:4] == ["at least 4 ×", "9 ×", "2.2"]
    assert PREDICTIONS[9].row()[1:3] == ["falls", "rises from 2 to 3"]
    said = "11 predictions: 2 as predicted, 1 within the limit that was predicted, 2 a little off, 3 failed, 1 that this run cannot judge, "
    assert tally(PREDICTIONS) == said + "2 that were not measured here"
    assert tally([]) == "0 predictions: none"


@pytest.mark.parametrize(
    "measured, ratio, verdict",
    [
        (1.08, "1.08", "as predicted"),
        (1.12, "1.12", "a little above"),
        (0.92, "0.92", "as predicted"),
        (1.0, "1", "as predicted"),
        (0.3, "0.30", "the prediction failed"),
        (5.0, "5", "the prediction failed"),
        (None, "–", MISSING),
    ],
)
def test_ratios_with_different_verdicts_are_different_numbers(measured, ratio, verdict):
    assert Prediction("time", 1.0, measured).row()[3:5] == [ratio, verdict]


def test_a_row_without_a_prediction_does_not_say_at_most_not_measured():
    for sense in ("", "at least", "at most"):
        row = Prediction("gain", None, 2.0, unit="×", sense=sense).row()
        assert row[1] == "no prediction here" and row[2] == "2 ×" and row[4] == MISSING


def test_a_cell_has_the_range_alone_where_the_verdict_has_the_words():
    found = trend([1, 2], [[1.0, 1.5, 2.0], [1.0, 1.8, 2.0]], "s")
    row = Prediction("shape", "rises", found, unit="").row()
    assert row[2] == "1.50 s to 1.80 s" and row[4] == "this run cannot tell"


def test_a_cause_that_stands_in_the_row_above_is_not_repeated(capsys):
    causes = ("a slow product", "a slow product", "a slow product", "", "a slow product")
    predictions_table([Prediction("time", 1.0, 3.0, why) for why in causes])
    said = capsys.readouterr().out
    assert said.count("A slow product") == 2 and said.count("As above") == 2
    predictions_table([Prediction("time", 1.0, 3.0, "no cause was measured")] * 2)
    assert capsys.readouterr().out.count("No cause was measured") == 2


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
    _, (ax, _) = figure(2)
    caution(ax, "")
    assert ax.get_title("left") == ""
    caution(
        ax,
        "this run cannot show it: fewer than 2 repeats; the recorded run of 2026-11-24 is shown instead",
    )
    title = ax.get_title("left")
    assert title.startswith("This run cannot") and title.endswith(".") and "\n" in title


LONG = (
    "this run cannot show it: other programs used 1.4 cores on average while it ran; the repeats differ by 180 %, more than "
    "25 %; memory bandwidth at 12 GB/s is 0.34 times this machine's record; the recorded run of 2026-11-24 is shown instead"
)


@pytest.mark.parametrize("panels", [1, 2])
def test_a_long_note_stays_within_its_drawn_panel(panels, tmp_path):
    fig, axes = figure(panels)
    first = axes if panels == 1 else axes[0]
    caution(first, LONG)
    for ax in (
        [axes] if panels == 1 else axes
    ):  # drawn after the note, and makes the panels narrower
        ax.plot([0, 1], [1e9, 2e9])
        ax.set(ylabel="a label\nof two lines", yticks=[1e9, 2e9], yticklabels=["1,000,000,000", "2,000,000,000"])  # fmt: skip
    save(fig, tmp_path / "figure.svg")
    (title,) = [t for t in first.findobj(Text) if t.get_text().startswith("This run")]
    assert title.get_text().replace("\n", " ") == LONG[:1].upper() + LONG[1:] + "."
    assert title.get_window_extent().width <= first.get_window_extent().width + 1
    assert title.get_window_extent().y1 <= fig.bbox.y1 + 1  # and the layout made room for it


def test_a_note_below_a_figure_stays_within_it(tmp_path):
    fig, _ = figure(2)
    caution_below(fig, LONG)
    save(fig, tmp_path / "figure.svg")
    (label,) = [t for t in fig.findobj(Text) if t.get_text().startswith("This run")]
    assert label.get_window_extent().x0 >= 0 and label.get_window_extent().x1 <= fig.bbox.x1


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
