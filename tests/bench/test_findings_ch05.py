"""Chapter 5's sentences follow its numbers, also where a prediction fails and where a run cannot tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lib.bench.findings.serving import ch05_serving as ch05
from lib.bench.findings.serving import serving_lock, serving_queue, serving_rows
from lib.bench.records.files import Run

FROZEN = Path(__file__).with_name("frozen") / "05_serving.json"


def run(**measurements) -> Run:
    """A run of series, each given as (params, columns); repeats are lists."""
    found = {}
    for name, (params, columns) in measurements.items():
        samples = {
            key: [v if isinstance(v, list) else [] for v in column]
            for key, column in columns.items()
            if any(isinstance(v, list) for v in column)
        }
        plain = {
            key: [sorted(v)[len(v) // 2] if isinstance(v, list) else v for v in column]
            for key, column in columns.items()
        }
        found[name] = {
            "unit": "s", "params": params, "seed": 0, "columns": plain, "samples": samples,
        }  # fmt: skip
    return Run({"measurements": found})


# 24 tokens take 0.6 s alone, so a step takes 25 ms; 4 users one after the other take 2.4 s.
OFFLINE = (
    {"answer": 24, "users": 4, "max_num_seqs": 8},
    {
        "work": ["one answer", "a batch of users", "a full batch"],
        "requests": [1, 4, 8],
        "seconds": [0.6, 0.62, 0.75],
    },
)


def served(blocking=2.4, locked=0.005, threaded=0.008, locked_all=2.4, threaded_all=0.63) -> Run:
    columns = {
        "server": ["the loop computes", "threads and a lock", "an engine thread"],
        "health_worst": [blocking, locked, threaded],
        "all_answers": [2.4, locked_all, threaded_all],
    }
    return run(offline=OFFLINE, health_under_load=({}, columns))


@pytest.mark.parametrize(
    "blocking, verdict",
    [(2.4, "as predicted"), (2.8, "a little above"), (0.7, "failed"), (7.0, "failed")],
)
def test_the_loop_that_computes(blocking, verdict):
    assert verdict in ch05.loop(served(blocking))["blocking_finding"]
    assert verdict in ch05.of_loop(served(blocking))[0].verdict


@pytest.mark.parametrize("worst, within", [(0.008, True), (0.02, True), (0.03, False)])
def test_the_engine_thread_answers_within_a_step_or_the_prediction_failed(worst, within):
    said = ch05.loop(served(threaded=worst))["threaded_finding"]
    assert ("less than one step" in said) == within
    assert ("the prediction failed" in said) == (not within)


@pytest.mark.parametrize("seconds, faster", [(0.63, True), (2.3, False), (5.0, False)])
def test_batching_is_the_cause_only_of_a_gain(seconds, faster):
    said = ch05.loop(served(threaded_all=seconds))["batching_finding"]
    assert ("nothing to batch" in said) == ("as fast as" in said) == faster


@pytest.mark.parametrize(
    "latencies, words",
    [
        ([3.0, 2.95, 2.9], "all its 3 probes were answered at the end of the stall"),
        (
            [3.0, 0.1, 0.1],
            "Of the 3 probes of the server that computes on its loop, 1 was answered at the end of the stall, and",
        ),
        ([None] * 3, "was not measured here"),
    ],
)
def test_the_probes_of_the_loop_lie_on_a_slope_only_where_they_do(latencies, words):
    columns = {"server": ["the loop computes"] * 3, "at": [0.0, 0.05, 0.1], "latency": latencies}
    said = ch05.loop(run(health_probes=({}, columns)))["slope_finding"]
    assert words in said and ("on a slope" in said) == ("all its" in said)


@pytest.mark.parametrize(
    "short, words",
    [
        (
            [1.5, 1.45, 1.4],
            "a slope for each turn: all its 6 probes were answered at the end of their",
        ),
        (
            [1.5, 0.1, 0.1],
            "Of the 6 probes of the server that computes on its loop, 4 were answered",
        ),
    ],
)
def test_a_probe_is_compared_with_the_end_of_its_own_turn(short, words):
    """The second turn is half as long as the first, so all its answers come before the end of the first."""
    columns = {
        "server": ["the loop computes"] * 6,
        "at": [0.0, 0.05, 0.1] * 2,
        "latency": [3.0, 2.95, 2.9, *short],
    }
    said = ch05.loop(run(health_probes=({}, columns)))["slope_finding"]
    assert words in said and "their turn's stall" in said


def test_offline_times_are_called_too_low_only_where_all_three_are():
    low = served(blocking=3.0, locked_all=3.0, threaded_all=0.9)
    assert "All three are too low" in ch05.loop(low)["offline_finding"]
    assert "too low" not in ch05.loop(served(blocking=3.0))["offline_finding"]
    assert "too low" not in ch05.loop(run())["offline_finding"]


def burst(worst=3.0, bounded=1.5, answered=12, refused=20, rounds=1) -> Run:
    columns = {
        "queue": ["no end", "bounded"],
        "answered": [[0.7, worst], [0.7, bounded]],
        "worst": [worst, bounded],
        "refused": [None, 0.015],
        "num_answered": [32 * rounds, answered],
        "num_refused": [0, refused],
    }
    params = {"requests": 32, "limit": 12, "max_num_seqs": 8, "rounds": rounds}
    return run(offline=OFFLINE, burst=(params, columns))


@pytest.mark.parametrize(
    "worst, verdict", [(3.1, "as predicted"), (3.6, "a little above"), (6.0, "failed"), (0.9, "failed")]
)  # fmt: skip
def test_a_burst_is_judged_by_its_batches(worst, verdict):
    said = ch05.queue(burst(worst))["no_end_finding"]
    assert "(predicted: 3 s)" in said and verdict in said


def test_refusals_are_counted_over_all_bursts():
    said = ch05.queue(burst(answered=24, refused=40, rounds=2))["refused_finding"]
    assert "In 2 bursts, 24 requests were answered and 40 refused" in said
    assert "More than the limit" not in said and "2 % of the time of a batch" in said
    assert "More than the limit" in ch05.queue(burst(answered=13))["refused_finding"]
    assert "limit was not reached" in ch05.queue(burst(refused=0))["refused_finding"]


def with_full_batch(seconds, one=0.6, users=0.62) -> Run:
    columns = {**OFFLINE[1], "seconds": [one, users, seconds]}
    params = {"max_num_seqs": 8, "limit": 12, "requests": 32}
    return run(offline=(OFFLINE[0], columns), burst=(params, {"queue": ["no end"]}))


@pytest.mark.parametrize(
    "seconds, limit, said",
    [
        (0.75, 16, "2 batches fit into 2 s, and 500 ms are left. One answer more takes 600 ms."),
        (1.07, 14, "1 batch fits into 2 s, and 930 ms are left. Of smaller batches, by the offline times, one of 6"),
        (1.55, 8, "1 batch fits"),  # by Little's law it would have been 10, which is one batch more
        (2.5, 6, "which is too long. Of smaller batches, by the offline times, one of 6 takes 1.56 s"),
    ],
)  # fmt: skip
def test_the_limit_for_the_slowest_counts_full_batches_and_the_rest(seconds, limit, said):
    found = with_full_batch(seconds)
    assert serving_queue.limit_for(found) == limit
    assert said in ch05.exercises(found)["limit_finding"]
    assert f"the limit is {limit} requests" in ch05.exercises(found)["limit_finding"]


def test_no_limit_helps_where_one_answer_is_too_slow():
    found = with_full_batch(9.0, one=2.3, users=4.0)
    assert serving_queue.limit_for(found) == 0
    assert "one answer alone 2.30 s, so no limit" in ch05.exercises(found)["limit_finding"]


def test_a_limit_that_was_measured_within_the_time_is_not_called_too_high():
    """With 12 inside, the last of a burst took 1.74 s: a limit of 8 for two seconds would contradict that."""
    found = with_full_batch(1.07, one=0.585, users=0.71)
    assert serving_queue.in_batches(found, 12, 8) == pytest.approx(1.78)
    assert serving_queue.limit_for(found) >= 12


def test_littles_law_speaks_of_the_mean():
    assert "15 requests inside give a mean of 2 s" in ch05.exercises(with_full_batch(16 / 15))["little_limit"]  # fmt: skip


@pytest.mark.parametrize("size, seconds", [(1, 0.6), (4, 0.62), (6, 0.685), (8, 0.75), (9, None)])
def test_a_batch_between_two_measured_ones_is_on_their_line(size, seconds):
    found = serving_queue.batch_seconds(with_full_batch(0.75), size)
    assert found == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("bounded, verdict", [(1.4, "as predicted"), (1.6, "a little above"), (3.0, "failed")])  # fmt: skip
def test_a_burst_with_a_limit_has_a_last_batch_of_the_rest(bounded, verdict):
    said = ch05.queue(burst(bounded=bounded))["bounded_finding"]
    assert "(predicted: 1.37 s)" in said and verdict in said


@pytest.mark.parametrize("users, words", [(0.5, "a little slower"), (0.375, "about the same"), (0.2, "1.6 times as fast")])  # fmt: skip
def test_half_the_slots_is_judged_by_the_time_of_half_a_batch(users, words):
    said = ch05.exercises(with_full_batch(0.75, one=0.1, users=users))["half_finding"]
    assert "3 batches of 4 take the place of a batch of 8 and one of 4" in said and words in said


def over_http(offline, streamed, whole=150.0) -> Run:
    columns = {
        "way": ["offline", "whole", "streamed"],
        "throughput": [offline, whole, streamed],
        "bound": [None, None, 0.99],
    }
    return run(throughput=({"event_seconds": 1e-4}, columns))


@pytest.mark.parametrize(
    "streamed, goal, costs, impossible",
    [
        ([139.0, 140.0, 141.0], True, True, False),
        ([149.0, 150.0, 151.0], True, False, False),
        ([100.0, 101.0, 102.0], False, True, False),
        ([190.0, 191.0, 192.0], True, False, True),  # 126 %: HTTP makes nothing faster
    ],
)
def test_the_share_over_http(streamed, goal, costs, impossible):
    said = ch05.http(over_http([149.0, 150.0, 151.0], streamed))
    assert ("this run reaches it" in said["goal_finding"]) == goal
    assert ("something else takes time too" in said["cost_finding"]) == costs
    assert ("HTTP cannot make an engine faster" in said["share_finding"]) == impossible


def test_a_small_cost_within_the_repeats_is_none():
    said = ch05.http(over_http([130.0, 150.0, 151.0], [135.0, 140.0, 152.0]))
    assert "cannot be seen" in said["cost_finding"]


def beside(process, thread, cores=2) -> Run:
    columns = {
        "neighbour": ["nobody", "a busy process", "a busy thread"],
        "step": [0.02, process, thread],
    }
    params = {"calls": 1755, "operators": 1380, "switch_interval": 0.005, "cores": cores}
    return run(step_beside=(params, columns))


@pytest.mark.parametrize(
    "process, failed", [(0.021, False), (0.04, False), (0.052, True), (0.09, True)]
)
def test_a_busy_process_costs_a_core_or_more(process, failed):
    said = ch05.lock(beside(process, 4.0))["process_finding"]
    assert ("the prediction failed" in said) == failed
    assert (ch05.of_lock(beside(process, 4.0))[0].verdict == "the prediction failed") == failed


@pytest.mark.parametrize("thread, seen", [(4.0, True), (0.2, True), (0.041, False), (0.02, False)])
def test_the_lock_is_blamed_only_where_a_thread_costs_more_than_a_process(thread, seen):
    said = ch05.lock(beside(0.04, thread))
    assert ("would slow every step" in said["lock_finding"]) == seen
    assert ("shows no cost of the shared lock" in said["lock_finding"]) == (not seen)
    assert ("switch intervals" in said["thread_finding"]) == seen


def test_noisy_turns_tell_nothing_about_the_lock_the_goal_and_the_step():
    said = ch05.lock(beside(0.074, [0.06, 0.25, 0.4]))
    assert "cannot tell" in said["thread_finding"] and "intervals" not in said["thread_finding"]
    assert "cannot tell what sharing the lock costs" in said["lock_finding"]
    goal = ch05.http(over_http(150.0, [120.0, 141.0, 150.0]))["goal_finding"]
    assert "cannot tell" in goal and "reach" not in goal
    step = served(threaded=[0.02, 0.03])
    assert "cannot tell" in ch05.loop(step)["threaded_finding"]
    assert ch05.of_loop(step)[1].verdict == "this run cannot tell"


def test_lost_intervals_are_counted_per_operator_and_not_per_call():
    assert serving_lock.lost_share(beside(0.04, 0.04 + 690 * 0.005)) == pytest.approx(0.5)
    assert (
        "690 switch intervals for 1,380 calls that run an operator:"
        in ch05.lock(beside(0.04, 3.49))["thread_finding"]
    )


def left(wasted, **params) -> Run:
    columns = {"server": ["an engine thread"], "asked_for": [768], "for_nobody": [wasted]}
    return run(tokens_after_leaving=({"leave_after": 10, **params}, columns))


@pytest.mark.parametrize(
    "wasted, verdict",
    [(0, "as predicted"), (1, "within the limit"), (2, "as predicted"), (3, "the prediction failed"),
     (700, "the prediction failed"), (None, "was not measured here")],
)  # fmt: skip
def test_tokens_after_leaving(wasted, verdict):
    said = ch05.leaving(left(wasted))["wasted_finding"]
    assert verdict in said and ("at most 2" in said) == (wasted is not None)
    assert "1 more was computed" in ch05.leaving(left(1))["wasted_finding"]
    (found,) = ch05.of_leaving(left(wasted))
    assert found.verdict == verdict and found.row()[1] == "at most 2"


def test_blocks_that_others_took_meanwhile_are_named():
    pool = {"used_before": 21, "used_after": 6, "long_blocks": 17, "freed_s": 0.04}
    assert "others had taken 2 more" in ch05.leaving(left(1, **pool))["pool_finding"]
    pool["used_after"] = 4
    assert "others" not in ch05.leaving(left(1, **pool))["pool_finding"]


@pytest.mark.parametrize(
    "most, prompt, said",
    [(0.03, False, "no other prompt delayed them much"), (0.2, True, "another user's prompt"), (0.2, False, "at most.")],
)  # fmt: skip
def test_the_longest_gap_is_blamed_on_a_prompt_only_if_one_came(most, prompt, said):
    columns = {"prompt": [32, 256], "ttft": [0.06, 0.26], "gap_median": [0.025, 0.025]}
    columns |= {"gap_max": [most, most], "prompt_in_gap": [prompt, prompt]}
    assert said in ch05.timeline(run(timeline=({}, columns)))["gap_finding"]


def test_a_7b_model_on_an_h100_by_the_data_sheet():
    said = ch05.realistic()["realistic_finding"]
    assert "makes 4 batches" in said and "4 users with 100 tokens each" in said
    some = ch05.realistic_events(over_http(150.0, 140.0))["events_7b_finding"]
    assert "46 % of one core" in some


def test_waves():
    found = [serving_rows.waves(n, 8) for n in (1, 8, 9, 32)]
    assert found == [1, 1, 2, 4] and serving_rows.waves(None, 8) is serving_rows.waves(3, 0) is None


def test_the_recorded_run_of_old_says_what_it_did_not_measure():
    recorded = Run(json.loads(FROZEN.read_text()))
    said = ch05.render(recorded)
    assert "its prediction was not measured here" in said["blocking_finding"]
    assert "the lock was lost at 45 % of them" in said["thread_finding"]
    assert said["share_finding"].count("about the same throughput") == 2
    verdicts = [p.verdict for p in ch05.predictions(recorded)]
    assert verdicts.count("was not measured here") == 7


@pytest.mark.parametrize("late, words", [(0, "Of its 4 probes in all turns, none took longer"), (3, "Of its 4 probes in all turns, 3 took longer than one step"), (4, "4 took longer")])  # fmt: skip
def test_probes_beyond_a_step_are_counted(late, words):
    """A step takes 25 ms; the worst of a turn is the median over the turns, which may hide single probes."""
    latencies = [0.9] * late + [0.001] * (4 - late)
    probes = (
        {},
        {"server": ["an engine thread"] * 4, "at": [0.0, 1.0, 2.0, 3.0], "latency": latencies},
    )
    found = served().measurements | run(health_probes=probes).measurements
    said = ch05.loop(Run({"measurements": found}))["threaded_finding"]
    assert words in said and said.startswith("The worst probe of a turn at the server")
    assert "probes" not in ch05.loop(served())["threaded_finding"]


@pytest.mark.parametrize(
    "streamed, words",
    [
        ([104.0, 105.0, 106.0], "is the spread of the rounds, or their order, and no gain"),
        ([180.0, 181.0, 182.0], "so something else differs between these runs"),
        ([99.0, 100.0, 100.0], ""),
        ([50.0, 51.0, 52.0], ""),
    ],
)
def test_a_share_above_the_whole_is_no_gain(streamed, words):
    columns = {
        "way": ["offline", "whole", "streamed"],
        "throughput": [[100.0, 100.0, 101.0], [99.0, 99.0, 100.0], streamed],
        "bound": [None, None, 0.98],
    }
    series = {"throughput": ({"event_seconds": 1e-4}, columns)}
    said = ch05.http(run(**series))["share_finding"]
    assert words in said and ("HTTP cannot" in said) == bool(words)
