"""What a page says of the run that it quotes."""

import json
from pathlib import Path

from lib.bench.findings.run_notes import card_time, of_record
from lib.bench.findings.shown import Shown
from lib.bench.paths import measurements_dir
from lib.bench.records.files import Run
from lib.bench.records.record import Record


def test_the_card_names_the_latest_run_on_a_cpu_and_else_an_estimate(tmp_path):
    assert card_time("07", "two minutes", folder=tmp_path) == "two minutes, by estimate"
    path = next(measurements_dir().glob("amd-epyc-2core/07_*.json"))
    run = json.loads(path.read_text())

    def keep(folder: str, kind: str, date: str, seconds: float) -> None:
        run["fingerprint"]["hardware"] |= {"kind": kind, "label": f"{folder}, {run['dtype']}"}
        run["fingerprint"]["date"], run["seconds"] = date, seconds
        target: Path = tmp_path / folder / path.name
        target.parent.mkdir()
        target.write_text(json.dumps(run))

    keep("gpu", "cuda", "2026-12-03T00:00:00", 9.0)
    assert card_time("07", "two minutes", folder=tmp_path) == "two minutes, by estimate"
    keep("old", "cpu", "2026-12-01T00:00:00", 50.4)
    keep("new", "cpu", "2026-12-02T00:00:00", 61.6)
    assert card_time("07", "two minutes", folder=tmp_path).startswith(
        "62 s in the recorded run (new)"
    )


def test_a_sentence_of_a_recorded_run_says_so_beside_this_runs_table():
    this_run = Record(
        "07_fused_attention", model="gpt2", weights="random", dtype="float32", device="cpu"
    )
    gain = "The gain is 2 times."
    assert of_record(Shown(this_run), gain) == gain
    assert (
        of_record(Shown(Run({"measurements": {}})), gain)
        == "In the recorded run, the gain is 2 times."
    )
    assert of_record(Shown(Run({"measurements": {}})), gain, under_table=True) == (
        "In the recorded run (the table above has this copy's), the gain is 2 times."
    )
    assert of_record(Shown(this_run), gain, under_table=True) == gain
    assert of_record(Shown(Run({"measurements": {}})), "A wins; this run reaches the goal.") == (
        "In the recorded run, a wins; that run reaches the goal."
    )
    unsure = "This run cannot tell which is faster."
    assert (
        of_record(Shown(Run({"measurements": {}})), unsure)
        == "The recorded run cannot tell which is faster."
    )
    for name in ("K and V take less.", "GPT-2 is faster.", "SmolLM2 is faster."):
        assert of_record(Shown(Run({"measurements": {}})), name) == f"In the recorded run, {name}"
