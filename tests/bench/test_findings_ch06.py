"""The sentences of chapter 6: what its failures in the past would say now."""

import json
from pathlib import Path

import pytest

from lib.bench.findings.load_test import ch06_load_test as ch06
from lib.bench.findings.load_test import load_goodput, load_patterns
from lib.bench.findings.load_test.load_rows import CONTIGUOUS, LIMITED, PAGED, SEQUENTIAL
from lib.bench.findings.shown import Shown
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


def test_a_median_of_refusals_may_lie_between_two_counts(data):
    put(data, "open_loop", "rejected", 25.5, server=LIMITED, share=worst(data, LIMITED))
    assert "it refused 25.5 on average," in said(data, "refused_finding")


def test_the_mean_wait_is_judged_by_the_mean(data):
    assert said(data, "wait_finding").endswith("1.94 s: as predicted.")
    put(data, "open_loop", "ttft_mean", 0.7, server=PAGED, share=worst(data, PAGED))
    assert said(data, "wait_finding").endswith("the prediction failed.")


def test_copies_that_are_not_alike_are_not_compared(data):
    assert "not alike" in said(data, "twin_finding")
    assert "although it is the slower" in said(data, "goodput_finding")
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
    assert "the limit brought no more goodput" in said(data, "goodput_finding")
    assert "limit on the queue keeps" not in said(data, "model_lesson")
    put(data, "open_loop", "goodput", 0.0, server=PAGED, share=share)
    assert "2 requests/s, and the one without has none" in said(data, "goodput_finding")


@pytest.mark.parametrize("steady, easiest", [(0.13, True), (2.35, False)])
def test_steady_is_the_easiest_only_where_it_was(data, steady, easiest):
    put(data, "patterns", "ttft_p95", steady, pattern="steady")
    assert ("measures the easiest case" in said(data, "patterns_finding")) == easiest
    assert (load_patterns.easiest(Run(data)).kind == "steady") == easiest
    verdict = ch06.predictions(Run(data))[-1].verdict
    assert verdict == ("as predicted" if easiest else "the prediction failed")


@pytest.mark.parametrize(
    "steady, poisson, verdict",
    [
        ((0.3, 0.4), (0.1, 0.2), "the prediction failed"),
        ((0.3, 0.4), (0.2, 0.35), "this run cannot tell"),
        ((0.2, 0.35), (0.3, 0.4), "as predicted"),
    ],
)
def test_turns_that_overlap_name_no_easiest_pattern(data, steady, poisson, verdict):
    columns = {"pattern": [], "ttft_p95": []}
    for kind, turns in {"steady": steady, "poisson": poisson, "gamma": (1, 1), "burst": (2, 2)}.items():  # fmt: skip
        columns["pattern"] += [kind] * len(turns)
        columns["ttft_p95"] += turns
    data["measurements"]["patterns"]["columns"] = columns
    assert ch06.predictions(Run(data))[-1].verdict == verdict
    cannot = "this run cannot tell: its repeats and those of random arrivals overlap"
    assert (cannot in said(data, "patterns_finding")) == (verdict == "this run cannot tell")


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


def stalled(data, slow, in_place):
    """12 requests are due in a stall of 1 s; the queue is emptied with `in_place` seconds in each of 4 places."""
    params = {"stall": 1.0, "rate": 12.0, "places": 4, "stopped": [1.0, 2.0]}
    data["measurements"]["stall_count"] = {
        "unit": "requests", "seed": 0, "samples": {}, "params": {**params, "requests": 60, "slow": 0.5},
        "columns": {"clock": ["since due", "since sent"], "slow": [slow, 4], "expected": [14, 4]},
    }  # fmt: skip
    data["measurements"]["stall_requests"] = {
        "unit": "s", "seed": 0, "samples": {}, "params": params,
        "columns": {
            "due": [0.1, 0.9, 1.2, 1.5, 3.0],  # before, in a place, and two that waited; then none waits
            "since due": [0.1, 1.2, 1.0, 0.9, 0.1],
            "since sent": [0.1, 1.2, in_place, in_place, 0.1],
        },
    }  # fmt: skip
    return data


@pytest.mark.parametrize(
    "slow, in_place, verdict, caused",
    [
        (18, 1 / 6, "as predicted", False),  # the load is one half, as the model says
        (25, 0.2, "the prediction failed", True),  # 0.6: the formula gives 23
        (60, 0.2, "the prediction failed", False),  # too many also for that load
        (25, 0.5, "the prediction failed", False),  # a load above 1: no formula
        (25, None, "the prediction failed", False),
    ],
)
def test_a_slow_drain_explains_slow_requests_only_where_the_formula_does(
    data, slow, in_place, verdict, caused
):
    found = ch06.predictions(Run(stalled(data, slow, in_place)))[0]
    assert found.predicted == pytest.approx(18) and found.verdict == verdict
    assert ("the load was 0.6" in found.why) == caused
    if not caused:
        assert found.why == ("no cause was measured" if "failed" in verdict else "")
    load = said(data, "load_finding")
    assert ("as predicted" in load.partition(" At this load")[0]) == (in_place == 1 / 6)
    assert ("was not measured here" in load) == (in_place is None)


def test_the_count_of_slow_requests_has_their_own_time_in_it():
    assert ch06.slow_requests(12, 4) == 18 and ch06.slow_requests(12, 4, 1.0) is None
    assert (
        ch06.slow_requests(12, 0, 0.0) == 6
    )  # each alone, at once: half of those due in the stall


@pytest.mark.parametrize(
    "shared, each, words",
    [
        (16.2, 0.001, "about the same: they do not show what a sequence adds"),
        (0.001, 25.0, "takes 25 s per sequence, and its sequences share almost nothing"),
    ],
)
def test_two_noisy_points_do_not_tell_the_parts_of_a_step_apart(data, shared, each, words):
    table = columns(data, "throughput_by_users")
    for row, n in enumerate(table["users"]):
        table[f"{PAGED}, predicted"][row] = n / (shared + each * n)
    found = said(data, "model_finding")
    assert words in found and "add more than they share" not in found


@pytest.mark.parametrize("shared, each, users", [(1.71, 1.33, 2), (16.3, 0.786, 21), (1, 5, 1)])
def test_the_sequences_add_more_than_they_share_from_the_right_number_on(data, shared, each, users):
    table = columns(data, "throughput_by_users")
    for row, n in enumerate(table["users"]):
        table[f"{PAGED}, predicted"][row] = n / (shared + each * n)
    words = f"from {users} user{'s' * (users != 1)} on the sequences add more"
    assert words in said(data, "model_finding")
    assert each * users > shared >= each * (users - 1)


@pytest.mark.parametrize(
    "gains, words",
    [([8, 6, 4], "as expected"), ([4, 6, 8], "the expectation failed"), ([8, 8, 8], "the expectation failed")],
)  # fmt: skip
def test_the_gain_by_prompt_is_judged(data, gains, words):
    columns(data, "gain_by_length")["gain"] = gains
    assert words in said(data, "prompts_finding")


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


def test_a_recorded_run_is_named_where_it_stands_in(data):
    series = {"server": [PAGED], "shared": [0.016], "each": [0.001]}
    series |= {"shared_bound": [0.006], "each_bound": [0.001]}
    data["measurements"]["step_line"] = {
        "unit": "s", "params": {"max_num_seqs": 16}, "seed": 0, "samples": {}, "columns": series,
    }  # fmt: skip
    assert said(data, "bound_finding").startswith("At the paged server")
    shown = ch06.line_bound(Shown(Run(data)))["bound_finding"]
    assert shown.startswith("In the recorded run, at the paged server")


@pytest.mark.parametrize("wide, words", [(0.037, ""), (0.06, "spreads too widely")])
def test_turns_that_overlap_are_alike_where_they_agree(data, wide, words):
    data["measurements"]["open_loop"]["samples"] = {}
    data["measurements"]["open_loop"]["columns"] = {
        "server": [LIMITED, LIMITED, PAGED, PAGED],
        "share": [0.6] * 4,
        "tpot_p50": [0.033, wide, 0.034, 0.036],
    }
    found = load_goodput.twins_reason(Run(data))
    assert words in found and bool(words) == bool(found)
    assert load_goodput.twin(Run(data))["twin_finding"].endswith("can be compared.") == (not words)


@pytest.mark.parametrize("factor, words", [(1.0, ""), (1.2, ""), (2.0, "differs by 100 %, more than 25 %"), (0.5, "differs by 100 %")])  # fmt: skip
def test_the_control_says_how_far_the_copies_are_apart(data, factor, words):
    shared = [s for s in columns(data, "open_loop")["share"] if s is not None and s < 1]
    for share in set(shared):
        for name, t in ((PAGED, 0.02), (LIMITED, 0.02 * factor)):
            put(data, "open_loop", "tpot_p50", t, server=name, share=share)
    data["measurements"]["open_loop"]["samples"] = {}
    found = ch06.twins_reason(Run(data))
    if ch06.twins(Run(data)).kind == "missing":
        assert "was not measured" in found
    else:
        assert words in found and bool(words) == bool(found)


def test_no_control_is_said(data):
    data["measurements"].pop("open_loop")
    assert "was not measured" in ch06.twins_reason(Run(data))


def test_two_pairs_of_points_are_told_apart(data):
    """The model's table is of this run; the figure may show a recorded one with points of its own."""
    run = Run(data)
    alone = ch06.foretold(run)["model_finding"]
    assert alone == ch06.foretold(run, Shown(object()))["model_finding"]
    both = ch06.foretold(run, Shown(run))["model_finding"]
    assert both.startswith("In this run: ") and "its own two points" in both


@pytest.mark.parametrize("apart, together", [(1.0, True), (1.05, True), (1.3, False)])
def test_lines_lie_on_each_other_only_where_they_do(data, apart, together):
    found = columns(data, "throughput_by_users")
    found[PAGED] = [apart * x for x in found[CONTIGUOUS]]
    late = columns(data, "latency_by_users")
    late[f"{CONTIGUOUS}, p95"] = [0.1] * len(late["users"])
    late[f"{PAGED}, p95"] = [0.1 * apart] * len(late["users"])
    for name in ("throughput_by_users", "latency_by_users"):
        data["measurements"][name]["samples"] = {}
    for name in ("fit_finding", "answer_finding"):
        assert ("lie on each other" in said(data, name)) == together


@pytest.mark.parametrize("longer, explained", [(1.0, False), (1.05, False), (3.0, True)])
def test_goodput_per_second_is_no_share(data, longer, explained):
    share = worst(data, LIMITED)
    put(data, "open_loop", "duration", 10.0, server=PAGED, share=share)
    put(data, "open_loop", "duration", 10.0 * longer, server=LIMITED, share=share)
    data["measurements"]["open_loop"]["samples"] = {}
    assert ("Goodput is per second" in said(data, "goodput_finding")) == explained


def test_the_longest_prompts_are_of_the_run_of_their_table(data):
    other = json.loads(json.dumps(data))
    rates = columns(other, "gain_by_length")["batching"]
    rates[-1] = 7.5
    other["measurements"]["gain_by_length"]["samples"] = {}
    rows_ = ch06.predictions(Run(data), length_run=Run(other))
    (found,) = [p for p in rows_ if "longest prompts" in p.claim]
    assert found.measured == 7.5
