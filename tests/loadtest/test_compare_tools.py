"""Load tools in turns: the same work, the order, the verdict and the record."""

from __future__ import annotations

import sys

import pytest

from book.scoreboard.claims import recorded_hardware
from lib.bench.records.files import read_records
from lib.loadtest import compare_tools as load_compare
from lib.loadtest.compare_tools import main
from lib.loadtest.readings import OURS, Reading
from lib.loadtest.rounds import compare, make_work, rows


def test_the_work_is_the_same_each_time_and_its_answers_differ_in_length():
    work = make_work(64, 16, 48)
    assert work == make_work(64, 16, 48)
    lengths = [request.max_tokens for request in work]
    assert min(lengths) >= 16 and max(lengths) <= 48 and len(set(lengths)) > 16
    assert len({request.prompt for request in work}) == 64


def test_a_program_that_is_not_there_is_said_before_anything_starts(capsys):
    with pytest.raises(SystemExit) as error:
        main(["--guidellm", "/no/guidellm", "--aiperf", sys.executable])
    assert error.value.code == 2
    assert "--guidellm /no/guidellm: there is no such program" in capsys.readouterr().err


def reading(tool: str, ttft: float) -> Reading:
    return Reading(tool, "1", 12, 672, 96, ttft, 0.02, 100.0)


def test_turns_change_their_order_and_the_first_round_does_not_count(capsys):
    order = []

    def turn(name):
        order.append(name)
        return reading(name, float(len(order)))

    found = compare({name: lambda name=name: turn(name) for name in (OURS, "a", "b")}, rounds=2)
    assert order == [OURS, "a", "b", "a", "b", OURS, "b", OURS, "a"]
    assert {name: [r.ttft for r in readings] for name, readings in found.items()} == {
        OURS: [6.0, 8.0],
        "a": [4.0, 9.0],
        "b": [5.0, 7.0],
    }


def test_rows_keep_every_round_and_compare_the_medians():
    ours, theirs = rows(
        {
            OURS: [reading(OURS, t) for t in (1.0, 2.0, 9.0)],
            "other": [reading("other", t) for t in (2.2, 0.5, 8.0)],
        }
    )
    assert ours["ttft"].median == 2.0 and ours["ttft_over_ours"] == 1.0 and ours["completed"] == 36
    assert theirs["ttft"].samples == (2.2, 0.5, 8.0) and theirs["ttft_over_ours"] == pytest.approx(
        1.1
    )
    assert theirs["tpot_over_ours"] == theirs["throughput_over_ours"] == 1.0


@pytest.mark.parametrize("ttft, code", [(1.09, 0), (1.2, 1)])
def test_the_command_writes_a_record_and_says_whether_all_agree(
    ttft, code, tmp_path, monkeypatch, capsys
):
    """With everything that runs something replaced: what is left is the table, the verdict and the record."""

    class Server:
        url = "http://127.0.0.1:9"
        __init__ = lambda self, *arguments, environment: None  # noqa: E731
        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *error: None  # noqa: E731

    asked = sum(request.max_tokens for request in make_work(64, 16, 48))

    def plain(tool, factor):
        return lambda *args: Reading(tool, "1", 64, 64 * 56, asked, factor, 0.02, 100.0)

    monkeypatch.setenv("BOOK_SCALE", "cpu")
    monkeypatch.setattr(load_compare, "ServerProcess", Server)
    monkeypatch.setattr(load_compare, "closed_loop", lambda *args: None)
    monkeypatch.setattr(load_compare, "read_ours", plain(OURS, 1.0))
    monkeypatch.setattr(load_compare, "guidellm", plain("guidellm", ttft))
    monkeypatch.setattr(load_compare, "aiperf", plain("aiperf", 1.0))
    assert (
        main(["--guidellm", sys.executable, "--aiperf", sys.executable, "--record", str(tmp_path)])
        == code
    )
    assert ("within 10%: yes" if code == 0 else "within 10%: NO") in capsys.readouterr().out
    (run,) = read_records("load_tools", folder=tmp_path)
    assert run["tools"]["tool"] == [OURS, "guidellm", "aiperf"]
    assert run["tools"]["ttft_over_ours"] == [1.0, pytest.approx(ttft), 1.0]
    assert run["tools"].samples["ttft"] == [[1.0] * 3, [ttft] * 3, [1.0] * 3]
    assert run["tools"].params["limit"] == 0.1 and run["tools"].params["rounds"] == 3
    assert recorded_hardware(tmp_path) == {}  # no chapter's record: the scoreboard does not see it
