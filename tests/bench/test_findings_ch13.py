"""Chapter 13's sentences follow its numbers, also where a prediction or a goal fails."""

from __future__ import annotations

import re

import pytest

from lib.bench.findings.many_machines import ch13_many_machines as ch13
from lib.bench.findings.many_machines import fleet_processes
from lib.bench.records.files import Run
from tests.bench.test_findings_chapters import perturbed

SETUPS = [fleet_processes.ONE, fleet_processes.THREADS, fleet_processes.PROCESSES]
NVLINK, NETWORK = "NVLink, 2 µs", "between machines, 10 µs"


def series(params=None, **columns):
    named = {name.replace("__", " "): values for name, values in columns.items()}
    return {"unit": "s", "params": params or {}, "seed": 0, "columns": named, "samples": {}}


def rack_series():
    return series(
        {"width": 10.0, "at": 25.0, "back": 45.0, "seats": 46}, middle=[5.0, 15.0, 25.0, 35.0, 45.0],
        **{"less loaded, p99": [0.05, 0.03, 0.03, 0.031, 0.03], "less loaded, hit rate": [0.5, 0.8, 0.8, 0.8, 0.8],
           "less loaded, most": [10, 11, 15, 16, 12], "more loaded, p99": [0.06, 0.03, 0.04, 0.36, 0.03],
           "more loaded, hit rate": [0.6, 0.85, 0.8, 0.8, 0.8], "more loaded, most": [20, 25, 40, 50, 30]},
    )  # fmt: skip


def record(**replaced):
    queues = {"two queues, at random": [1.0, 9.1], "two queues, the shorter": [0.6, 4.9],
              "one queue": [0.33, 4.27], "two queues, at random, closed form": [1.0, 9.0],
              "one queue, closed form": [1 / 3, 4.263]}  # fmt: skip
    policies = {"policy": ["round_robin", "power_of_two", "longest_prefix"],
                "hit_rate": [0.6, 0.58, 0.72], "predicted_hit_rate": [0.6, 0.6, 0.72],
                "ttft": [0.5, 0.5, 0.25], "predicted_ttft": [0.45, 0.5, 0.24],
                "line_ttft": [0.3, 0.3, 0.15], "own_steps_ttft": [0.49, 0.5, 0.25],
                "slower_ttft": [0.54, 0.65, 0.3], "same_replica": [1.0, 1.0, 0.75]}  # fmt: skip
    thousand = {"policy": ["round_robin", "power_of_two", "least_loaded", "power_of_two", "longest_prefix"],
                "load_age": [0.0, 0.0, 0.5, 0.5, 0.0], "hit_rate": [0.1, 0.1, 0.1, 0.1, 0.6],
                "ttft50": [0.03, 0.03, 0.2, 0.03, 0.01], "ttft99": [0.1, 0.1, 2.0, 0.12, 0.08]}  # fmt: skip
    measurements = {
        "threads_or_processes": series(
            {"requests": 8, "prompt": 48, "answer": 12}, setup=SETUPS, seconds=[4.0, 2.5, 2.1], ttft=[2, 1, 1]
        ),
        "tensor_parallel_by_devices": series(devices=[1, 8], **{NVLINK: [1.0, 4.2], NETWORK: [1.0, 0.8]}),
        "one_queue_or_two": series(load=[0.5, 0.9], **queues),
        "one_model_in_two": series(
            {"same_tokens": 16, "tokens": 16},
            of=["step of one process", "step of two, predicted", "step of two"],
            seconds=[0.040, 0.025, 0.030],
        ),
        "step_times": series(tokens=[1, 40, 260], seconds=[0.04, 0.2, 0.8], line=[0.04, 0.15, 0.75]),
        "policies": series(
            {"one_replica": 0.75, "steps_over_line": 1.14, "steps_over_measured": 1.01,
             "requests": 20, "beginnings": 6, "shared": 240},
            **policies
        ),
        "killed": series(
            outcome=["completed at the first try", "completed at the other replica", "failed after the first token"],
            count=[14, 6, 4],
        ),
        "thousand_replicas": series(**thousand),
        "day": series(plan=["fixed, 2", "fixed, 4", "follows"], replica_hours=[48.0, 96.0, 60.0],
                      attained=[0.8, 0.999, 0.995]),
        "prompts_apart": series(prefill_replicas=[0, 4, 6], ttft99=[0.1, 0.12, 0.09], tpot99=[0.012, 0.007, 0.008]),
        "rack_over_time": rack_series(),
        "rack_lost": series({"at": 25.0, "back": 45.0}, load=["less loaded", "more loaded"], failed=[3, 9], moved=[0, 5], requests=[900, 1700],
                            before=[0.05, 0.08], during=[0.06, 0.4]),
    }  # fmt: skip
    for name, change in replaced.items():
        measurements[name]["columns"].update(change)
    return Run({"measurements": measurements})


def said(**replaced):
    return ch13.render(record(**replaced))


def test_threads_and_processes_are_compared():
    text = said()["setups_finding"]
    assert text.startswith("8 requests of 48 tokens, 12 new tokens each. The job")
    assert "two threads is 1.6 times as fast" in text and "two processes is 1.9 times" in text
    slower = said(threads_or_processes={"seconds": [4.0, 1.0, 2.1]})["setups_finding"]
    assert "two processes takes 2.1 times as long" in slower


@pytest.mark.parametrize(
    "seconds, expected",
    [
        (4.4, "about the same time"),
        (4.8, "two threads is a little slower than that with one thread"),
        (13.3, "two threads takes several times as long as that with one thread"),
    ],
)
def test_a_second_thread_can_be_useless(seconds, expected):
    text = said(threads_or_processes={"seconds": [4.0, seconds, 2.1]})["setups_finding"]
    assert expected in text


def test_threads_whose_repeats_overlap_cannot_be_told_apart():
    data = record().data
    data["measurements"]["threads_or_processes"]["samples"] = {
        "seconds": [[3.0, 5.0], [2.0, 3.5], [2.1, 2.1]]
    }
    text = ch13.render(Run(data))["setups_finding"]
    assert "This run cannot tell the job with two threads and that with one thread apart" in text


def test_one_model_in_two_processes_against_its_least_time():
    text = said()
    assert (
        "25 ms at least, and takes 30 ms: 1.2 times the least time. A step of two processes is 1.3 times as fast"
        in text["one_model_finding"]
    )
    assert text["one_model_tokens"] == "Of 16 tokens, 16 are those of one process."


@pytest.mark.parametrize(
    "both, words, rest",
    [
        (0.0075, "0.30 times the least time. A step of two processes is several times as fast", "too slow."),
        (0.0225, "0.90 times the least time. A step of two processes is 1.8 times as fast", "too slow."),
        (0.0250, "1 times the least time", "such as the norms."),
        (0.0275, "1.1 times the least time", "such as the norms."),
        (0.1250, "5 times the least time. A step of two processes takes several times as long", "was not measured."),
    ],
)  # fmt: skip
def test_what_the_least_time_leaves_out_is_said_by_the_distance(both, words, rest):
    text = said(one_model_in_two={"seconds": [0.040, 0.025, both]})
    assert words in text["one_model_finding"] and text["one_model_rest"].endswith(rest)


def test_where_devices_stop_helping_is_said_by_link():
    text = said()["amdahl_finding"]
    assert text == (
        "With communication, the largest speed-up in the figure is 4.2 times at 8 devices with NVLink, and "
        "none with a network between machines."
    )


def test_the_simulators_error_is_the_largest():
    assert "at most 1 %" in said()["erlang_finding"]
    off = said(one_queue_or_two={"one queue": [0.33, 5.0]})["erlang_finding"]
    assert "at most 17 %" in off


def test_the_gain_of_the_shorter_queue_is_said_only_where_there_is_one():
    assert "makes up for 87 % of the difference" in said()["queues_finding"]
    worse = said(one_queue_or_two={"two queues, the shorter": [0.6, 9.5]})["queues_finding"]
    assert "makes up" not in worse and "in turn" not in worse
    turns = said(one_queue_or_two={"two queues, in turn": [0.8, 6.2]})["queues_finding"]
    assert "chosen at random, 6.20 with two queues in turn, 4.90 with the shorter" in turns


@pytest.mark.parametrize("rate, verb", [(0.72, "reaches"), (0.6, "does not reach")])
def test_the_goal_of_affinity(rate, verb):
    text = said(policies={"hit_rate": [0.6, 0.58, rate]})["hits_finding"]
    assert f"{verb} the goal of 90 %" in text


def test_the_trace_is_that_of_the_run_that_is_quoted():
    text = said()["trace_finding"]
    assert text.startswith("The trace has 20 requests with 6 beginnings of 240 tokens. One replica")
    assert "would find 75 % of the prompt tokens" in text


@pytest.mark.parametrize(
    "predicted, words",
    [(0.24, "4 % at most, within"), (0.5, "100 % at most, not within"), (0.301, "20.4 % at most, not within")],
)  # fmt: skip
def test_the_goal_of_the_simulator(predicted, words):
    text = said(policies={"predicted_ttft": [0.5, 0.5, predicted]})["simulator_finding"]
    assert f"{words} the 20 %" in text


def test_the_worst_step_of_the_straight_line_is_named():
    assert "at 40 tokens: such a step takes 1.3 times as long" in said()["steps_finding"]
    near = said(step_times={"seconds": [0.04, 0.15, 0.81]})["steps_finding"]
    assert near == "The straight line is within 8 % of the measured times."
    below = said(step_times={"seconds": [0.02, 0.15, 0.75]})["steps_finding"]
    assert "at 1 token: such a step takes 0.50 times as long" in below


@pytest.mark.parametrize(
    "line, verb, off",
    [([0.3, 0.3, 0.15], "misses", "40 %"), ([0.45, 0.5, 0.25], "reaches", "10 %")],
)
def test_what_became_of_the_first_prediction(line, verb, off):
    text = said(policies={"line_ttft": line})["line_finding"]
    assert f"by {off} at most, and {verb} the goal" in text
    assert "the difference is 10 % at most" in text
    assert "took 14 % more time than the line says, and 1 % more time than the calib" in text


def test_a_queue_is_said_to_enlarge_an_error_only_where_it_does():
    text = said()["amplified_finding"]
    assert "20 % to 30 % longer" in text and "enlarges" in text
    less = said(policies={"slower_ttft": [0.49, 0.5, 0.24]})["amplified_finding"]
    assert "enlarges" not in less
    shorter = said(policies={"slower_ttft": [0.405, 0.5, 0.24]})["amplified_finding"]
    assert "0.90 times to 1 times as long" in shorter
    same = said(policies={"slower_ttft": [0.54, 0.6, 0.288]})["amplified_finding"]
    assert "is 20 % longer with each policy." in same


def test_a_trace_that_took_the_predicted_time_is_not_longer_by_nothing():
    run = record()
    run.data["measurements"]["policies"]["params"]["steps_over_measured"] = 1.0
    run.data["measurements"]["policies"]["params"]["steps_over_line"] = 0.9
    text = ch13.render(Run(run.data))["line_finding"]
    assert "took 10 % less time than the line says, and the time that the calibration's" in text


def test_choices_of_another_replica_are_said_where_there_were_any():
    text = said()["own_steps_finding"]
    assert (
        "the difference is 2 % at most" in text
        and "with longest prefix, 75 % of the requests went" in text
    )
    same = said(policies={"same_replica": [1.0, 1.0, 1.0]})["own_steps_finding"]
    assert "replica" not in same


def test_the_cheapest_plan_that_serves_is_chosen():
    assert "“follows”: 99.50 % for 60 replica-hours" in said()["day_finding"]
    none = said(day={"attained": [0.8, 0.9, 0.7]})["day_finding"]
    assert none.startswith("No plan") and "“fixed, 4”, serves 90.00 %" in none
    one = said(day={"replica_hours": [48.0, 60.0, 96.0]})["day_finding"]
    assert "“fixed, 4”" in one and "most expensive plan takes 96." in one
    only = said(day={"attained": [0.8, 0.999, 0.9]})["day_finding"]
    assert only.endswith("for 96 replica-hours.")
    near = said(day={"attained": [0.8, 0.98996, 0.9]})["day_finding"]
    assert "serves 99.00 %" not in near and "serves 98.996 %" in near


def test_a_division_is_better_only_where_both_latencies_are():
    assert "6 replicas for prompts" in said()["apart_finding"]
    assert "Both are smaller" in said()["apart_finding"]
    worse = said(prompts_apart={"ttft99": [0.1, 0.3, 0.2]})["apart_finding"]
    assert "Both are smaller" not in worse


def test_a_killed_replica_and_a_lost_rack_are_counted():
    assert said()["killed_finding"] == (
        "Of the requests, 14 completed at the first try, 6 at the other replica, and 4 failed after the first token."
    )
    one = said(killed={"count": [10, 9, 1]})["killed_finding"]
    assert "9 at the other replica, and 1 failed after" in one
    assert "none failed" in said(killed={"count": [10, 10, 0]})["killed_finding"]
    assert said()["rack_finding"] == (
        "In the more loaded fleet, 9 of 1,700 requests failed: those that were running in the rack. 5 requests were "
        "still waiting there and went to another replica."
    )
    one = said(rack_lost={"failed": [0, 0], "moved": [0, 1]})["rack_finding"]
    assert "none of 1,700 requests failed. 1 request was still waiting" in one
    assert said(rack_lost={"moved": [0, 0]})["rack_finding"].endswith(
        "No request was still waiting there."
    )
    load = said()["rack_load_finding"]
    assert "while the rack was away, from 25 s to 45 s, the 99th" in load
    assert (
        "60 ms in the less loaded fleet (50 ms before) and 400 ms in the more loaded fleet (80 ms before)."
        in load
    )


def test_the_points_of_the_lost_rack_are_named():
    text = said()
    assert text["rack_peak_finding"] == (
        "A point of the figure has the requests of 10 s. From the loss on, the highest point is 31 ms for the "
        "arrivals of 30 s to 40 s in the less loaded fleet and 360 ms for the arrivals of 30 s to 40 s in the more "
        "loaded fleet."
    )
    assert text["rack_seats_finding"] == (
        "A replica computes at most 46 requests at a time, and further ones wait there. In the less loaded fleet, no "
        "replica has more than 16 of the completed requests at once. In the more loaded fleet, a replica first has "
        "more than that for arrivals of 30 s to 40 s, after the loss; the most at one replica are 50."
    )
    assert "60 % of the prompt tokens of 0 s to 10 s" in text["rack_fill_finding"]
    assert "85 % of those of 10 s to 20 s" in text["rack_fill_finding"]
    assert "is 60 ms and 30 ms." in text["rack_fill_finding"]
    early = {"more loaded, most": [50, 50, 50, 50, 50]}
    assert "0 s to 10 s, before the loss; the" in said(rack_over_time=early)["rack_seats_finding"]


@pytest.mark.parametrize(
    "change", [{"width": 0.0}, {"at": None}, {"back": 1.0}, {"seats": None}, {"at": 0.0}]
)
def test_points_without_their_times_are_not_read(change):
    data = record().data
    data["measurements"]["rack_over_time"]["params"].update(change)
    text = ch13.render(Run(data))
    assert text["rack_peak_finding"] == "The TTFT by the time of arrival was not measured here."


def test_a_fleet_that_lost_its_rack_at_once_says_nothing_of_the_time_before():
    data = record().data
    data["measurements"]["rack_over_time"]["params"].update({"at": 5.0})
    text = ch13.render(Run(data))
    assert text["rack_fill_finding"] == "How the caches fill was not measured here."


def test_the_kernels_are_not_given_as_the_cause_of_the_farthest_point():
    text = said()["kernels_finding"]
    assert text.endswith(
        "The steps of up to 32 tokens take 1 times as long as the line says, those of more tokens 1.1 to 1.3 times. "
        "How much of the distance comes from the kernels was not measured."
    )
    few = said(step_times={"tokens": [1, 8, 32]})["kernels_finding"]
    assert few.endswith("for more (chapter 8).")


def test_each_prediction_is_judged_by_the_run_that_its_section_shows():
    routed, parallel = record(), record(one_model_in_two={"seconds": [0.040, 0.025, 0.250]})
    rows = [p.row()[2] for p in ch13.predictions(routed, parallel)]
    assert rows[0] == "250 ms" and rows[1:] == [p.row()[2] for p in ch13.predictions(routed)[1:]]
    assert ch13.predictions(routed)[0].row()[2] == "30 ms"


def test_every_sentence_stands_whatever_is_missing_or_wrong():
    whole = record()
    names = ch13.render(whole).keys()
    for done, data in perturbed(whole.data):
        run = Run(data)
        for name, text in ch13.render(run).items():
            assert text and text[-1] in ".:" and not text.endswith(".."), (done, name, text)
            assert not re.search(r"\b(nan|inf|None)\b|[`*]|\{|\}|  ", text), (done, name, text)
        assert ch13.render(run).keys() == names
        assert all(len(p.row()) == 6 for p in ch13.predictions(run)), done
