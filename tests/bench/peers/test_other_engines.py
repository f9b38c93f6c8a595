"""The comparison with other CPU engines: the workers' protocol, and the sentences about its record."""

import sys
from types import SimpleNamespace

import pytest

from lib.bench.findings.quantisation import other_engines as words
from lib.bench.measure.timing import Timing
from lib.bench.peers import other_engines
from lib.bench.peers.other_engines import OtherEngine, compare, equal_start, main
from lib.bench.records.series import make_series
from lib.bench.workloads import Workload

# Answers with the last token of each prompt, and says other things in between.
ECHO = """
import json, sys
print("loading", sys.argv[1])
print("@" + json.dumps({"name": "echo", "version": "1"}), flush=True)
for line in sys.stdin:
    work = json.loads(line)
    print("a message of the library's own")
    tokens = [[ids[-1]] * work["new"] for ids in work["prompts"]]
    print("@" + json.dumps({"seconds": 0.5, "tokens": tokens}), flush=True)
"""
WORK = Workload("batch 2", [[1, 2], [3, 4]], [3, 3])


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Makes a worker of a script's text."""
    monkeypatch.setattr(other_engines, "__file__", str(tmp_path / "other_engines.py"))

    def make(text):
        (tmp_path / "worker.py").write_text(text)
        return OtherEngine(sys.executable, "worker.py", tmp_path / "model.gguf")

    return make


def test_a_worker_answers_and_ends(worker):
    with worker(ECHO) as other:
        assert (other.name, other.version) == ("echo", "1")
        for _ in range(2):
            timing, tokens = other.run(WORK)
            assert (timing.median, tokens) == (0.5, [[2, 2, 2], [4, 4, 4]])
    assert other.process.returncode == 0


def test_a_worker_that_dies_says_why(worker):
    with pytest.raises(RuntimeError, match="no such library"):
        worker("raise SystemExit('no such library')")


def test_a_worker_that_died_between_two_calls_says_why(worker):
    with worker(ECHO) as other:
        other.process.kill()
        other.process.wait()
        with pytest.raises(RuntimeError, match="ended with -9"):
            other.run(WORK)


def test_rates_count_all_tokens_by_the_worker_s_clock(worker):
    class Ours:
        def generate(self, prompts, params):
            return [SimpleNamespace(token_ids=[2, 2, 9]), SimpleNamespace(token_ids=[4, 4, 4])]

    with worker(ECHO) as other:
        (row,) = compare({other_engines.FLOAT: Ours()}, [other], [WORK], repeats=2)
    assert row["batch"] == 2
    assert row["echo"].samples == (12.0, 12.0)  # 6 tokens in 0.5 s
    assert row["echo equal"] == pytest.approx((2 / 3 + 1) / 2)
    assert row[f"{other_engines.FLOAT} equal"] == 1.0


def test_equal_start_ends_at_the_first_difference():
    assert equal_start([[1, 2, 3, 4]], [[1, 2, 9, 4]]) == 0.5
    assert equal_start([[1], [2]], [[1], [3]]) == 0.5


def test_the_command_asks_for_an_engine_and_for_a_program_that_exists(capsys):
    for arguments, said in (([], "--openvino"), (["--llama", "/none"], "--llama /none")):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert said in capsys.readouterr().err


def series(ours, theirs, batches=(1,)):
    points = [
        {"batch": b, words.OURS: Timing(o), "OpenVINO GenAI": Timing(t)}
        for b, o, t in zip(batches, ours, theirs)
    ]
    return make_series("engines", "tokens/s", points=points)


@pytest.mark.parametrize(
    "ours, theirs, said",
    [
        ((50.0, 50.1), (100.0, 101.0), "At batch 1 OpenVINO GenAI has 2.0 times the throughput"),
        ((100.0, 101.0), (100.0, 102.0), "about the same throughput"),
        ((100.0, 101.0), (50.0, 50.1), "this engine has 2.0 times the throughput"),
        ((60.0, 140.0), (70.0, 130.0), "cannot tell"),
    ],
)
def test_the_verdict_follows_the_rates(ours, theirs, said):
    assert said in words.verdict(series([ours], [theirs]), "OpenVINO GenAI")


def test_a_missing_engine_or_record_is_said():
    assert "was not measured here" in words.verdict(series([(1.0,)], [(1.0,)]), "llama.cpp")
    assert all("was not measured here" in text for text in words.findings(None).values())


def test_goals_are_judged_by_the_ratio():
    found = words.goals(
        series([(9.0,), (20.0,)], [(10.0,), (10.0,)], (1, 4)), "OpenVINO GenAI", {1: 1.0, 4: 1.0}
    )
    assert [row[1:] for row in found] == [[1, 1.0, "0.90", "no"], [4, 1.0, "2.00", "yes"]]
    assert words.goals(None, "llama.cpp", {1: 1.3}) == []


@pytest.mark.parametrize(
    "ours, theirs, met",
    [
        ((70.0, 140.0), (80.0, 120.0), "cannot tell"),
        ((130.0, 200.0), (80.0, 120.0), "yes"),
        ((50.0, 79.0), (80.0, 120.0), "no"),
        ((100.0, 104.0), (101.0, 103.0), "yes"),  # all repeats about the same
    ],
)
def test_a_goal_within_the_spread_is_not_judged(ours, theirs, met):
    (found,) = words.goals(series([ours], [theirs]), "OpenVINO GenAI", {1: 1.0})
    assert found[-1] == met


def test_a_goal_is_compared_at_the_wanted_ratio():
    at_twice = series([(150.0, 260.0)], [(95.0, 105.0)])
    assert words.goals(at_twice, "OpenVINO GenAI", {1: 2.0})[0][-1] == "cannot tell"
    assert words.goals(at_twice, "OpenVINO GenAI", {1: 1.0})[0][-1] == "yes"
