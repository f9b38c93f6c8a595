"""The sentences of chapter 6: what its failures in the past would say now."""

import copy
import json
from pathlib import Path

import pytest

from lib.bench.findings.load_test import ch06_load_test as ch06
from lib.bench.findings.load_test import load_patterns
from lib.bench.findings.load_test.load_rows import CONTIGUOUS, LIMITED, PAGED, SEQUENTIAL
from lib.bench.records.files import Run


@pytest.fixture
def data():
    """The first recorded run, cut to what these tests change."""
    return json.loads((Path(__file__).parent / "data" / "first_load_test.json").read_text())


def columns(data, name):
    return data["measurements"][name]["columns"]


def rows(data, name, **where):
    """Indexes of the rows with these labels."""
    found = columns(data, name)
    return [
        i
        for i in range(len(found[next(iter(where))]))
        if all(found[k][i] == v for k, v in where.items())
    ]


def put(data, name, column, value, **where):
    for i in rows(data, name, **where):
        columns(data, name)[column][i] = value


def worst(data, server):
    return max(
        columns(data, "open_loop")["share"][i] for i in rows(data, "open_loop", server=server)
    )


def said(data, name):
    return ch06.render(Run(data))[name]


@pytest.mark.parametrize(
    "batching, paging, words",
    [
        (9.5, 0.94, "the gain comes from the scheduler, and paging changes little"),
        (9.5, 0.6, "the gain comes from the scheduler, and paging costs some of it"),
        (9.5, 1.5, "both changes add to the gain"),
        (1.0, 1.5, "the gain comes from paging"),
        (1.0, 0.9, "neither change makes the server faster"),
    ],
)
def test_the_gain_is_given_to_the_change_that_made_it(data, batching, paging, words):
    table = columns(data, "throughput_by_users")
    table[SEQUENTIAL][-1] = 30.0
    table[CONTIGUOUS][-1] = 30.0 * batching
    table[PAGED][-1] = 30.0 * batching * paging
    assert words in said(data, "gain_finding")
    assert ("comes from the scheduler." in said(data, "gain_lesson")) == (
        words.startswith("the gain comes from the sch")
    )


def test_a_batch_slows_its_sequences_only_where_it_was_measured(data):
    assert "2.9 times as long: a batch slows down each of its sequences" in said(
        data, "pace_finding"
    )
    users = columns(data, "throughput_by_users")["users"][-1]
    alone = columns(data, "closed_loop")["tpot_p50"][rows(data, "closed_loop", server=PAGED)[0]]
    put(data, "closed_loop", "tpot_p50", alone, server=PAGED, users=users)
    assert "does not show that a batch slows" in said(data, "pace_finding")


def test_a_wait_longer_than_the_answer_is_no_share(data):
    users = columns(data, "throughput_by_users")["users"][-1]
    put(data, "closed_loop", "ttft_p50", 88.7, server=SEQUENTIAL, users=users)
    assert "cannot tell how much" in said(data, "first_token_finding")


def test_a_growing_throughput_is_not_at_its_best(data):
    assert "does not show the overload" in said(data, "best_finding")
    put(data, "open_loop", "request_throughput", 40.0, server=PAGED, share=worst(data, PAGED))
    found = said(data, "best_finding")
    assert "rises" in found and "does not show" not in found


def test_no_refusal_is_a_failed_prediction(data):
    share = worst(data, LIMITED)
    put(data, "open_loop", "rejected", 0, server=LIMITED, share=share)
    put(data, "open_loop", "rejected_fraction", 0.0, server=LIMITED, share=share)
    found = said(data, "refused_finding")
    assert "it refused 0, 0 %" in found and found.endswith("the prediction failed.")


def test_the_mean_wait_is_judged_by_the_mean(data):
    assert said(data, "wait_finding").endswith("1.94 s: as predicted.")
    put(data, "open_loop", "ttft_mean", 0.7, server=PAGED, share=worst(data, PAGED))
    assert said(data, "wait_finding").endswith("the prediction failed.")


def test_copies_that_are_not_alike_are_not_compared(data):
    assert "not alike" in said(data, "twin_finding")
    assert "although it is the slower" in said(data, "goodput_finding")
    assert "not alike" not in said(data, "early_twin")
    share = min(
        columns(data, "open_loop")["share"][i] for i in rows(data, "open_loop", server=LIMITED)
    )
    put(data, "open_loop", "tpot_p50", 0.06, server=PAGED, share=share)
    put(data, "open_loop", "tpot_p50", 0.06, server=LIMITED, share=share)
    assert said(data, "twin_finding").endswith("The two can be compared.")
    assert "although" not in said(data, "goodput_finding")


def test_a_limit_that_brings_nothing_is_a_failed_prediction(data):
    share = worst(data, LIMITED)
    put(data, "open_loop", "goodput", 2.0, server=LIMITED, share=share)
    assert "the limit brought no goodput" in said(data, "goodput_finding")
    assert "limit on the queue keeps" not in said(data, "model_lesson")
    put(data, "open_loop", "goodput", 0.0, server=PAGED, share=share)
    assert "2 requests/s, and the one without has none" in said(data, "goodput_finding")


@pytest.mark.parametrize("steady, easiest", [(0.13, True), (2.35, False)])
def test_steady_is_the_easiest_only_where_it_was(data, steady, easiest):
    put(data, "patterns", "ttft_p95", steady, pattern="steady")
    assert ("measures the easiest case" in said(data, "patterns_finding")) == easiest
    assert load_patterns.steady_is_easiest(Run(data)) == easiest
    verdict = ch06.predictions(Run(data))[-1].verdict
    assert verdict == ("as predicted" if easiest else "the prediction failed")


@pytest.mark.parametrize("due, sent, different", [(14, 4, True), (4, 4, False), (0, 0, False)])
def test_two_clocks_differ_only_where_they_did(data, due, sent, different):
    data["measurements"]["stall_count"] = {
        "unit": "requests", "seed": 0, "samples": {}, "params": {"requests": 60, "slow": 0.4},
        "columns": {"clock": ["since due", "since sent"], "slow": [due, sent], "expected": [14, 4]},
    }  # fmt: skip
    assert ("misses the others" in said(data, "stall_finding")) == different
    first, second = ch06.predictions(Run(data))[:2]
    assert (first.verdict == "as predicted") == (due == 14)
    assert second.verdict == "as predicted" if sent == 4 else True


def test_a_short_test_explains_a_difference_only_if_its_model_is_right(data):
    share = worst(data, LIMITED)
    series = columns(data, "open_loop")
    put(data, "open_loop", "rejected_fraction", 0.2, server=LIMITED, share=share)

    def why(model):
        series["predicted_rejected"] = [model] * len(series["server"])
        return next(
            p.why for p in ch06.predictions(Run(data)) if p.claim.startswith("share refused")
        )

    assert "begins and ends with an empty server" in why(0.21)
    assert why(0.4) == "no cause was measured"


def test_an_early_record_is_one_without_turns(data):
    later = copy.deepcopy(data)
    columns(later, "open_loop")["turn"] = [0] * len(columns(later, "open_loop")["server"])
    runs = [Run({"measurements": {}}), Run(later), Run(data)]
    assert ch06.early_run(runs) is runs[2] and ch06.early_run(runs[:2]) is None
    assert "replaced" in ch06.early_twin(None)["early_twin"]


@pytest.mark.parametrize("each, full", [(0.0008, "1.5 times the bound"), (0.0001, "a ceiling was")])
def test_a_step_has_a_bound_and_its_parts_have_none(data, each, full):
    """Arithmetic hides behind the reading of the weights: a small part per sequence says nothing about a ceiling."""
    data["measurements"]["step_line"] = {
        "unit": "s", "params": {"max_num_seqs": 16}, "seed": 0, "samples": {},
        "columns": {"server": [PAGED], "shared": [0.0163], "each": [each], "shared_bound": [0.0063], "each_bound": [0.0012 if each > 0.0005 else 0.0015]},
    }  # fmt: skip
    said = ch06.line_bound(Run(data))["bound_finding"]
    one, _, many = said.partition(", and one of 16 is ")
    assert "times the bound" in one and "ceiling" not in one and full in many
