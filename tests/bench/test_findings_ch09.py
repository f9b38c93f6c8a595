"""Chapter 9's sentences follow its numbers, also where a prediction or a goal fails."""

from __future__ import annotations

import pytest

from lib.bench.findings.prefix_caching import ch09_prefix_caching as ch09
from lib.bench.findings.shown import Shown
from lib.bench.records.files import Run


def run(**measurements) -> Run:
    series = {
        name.replace("__", " "): {
            "unit": "s",
            "params": {"knee": 8, "prompt": 544},
            "seed": 0,
            "columns": columns,
            "samples": {},
        }
        for name, columns in measurements.items()
    }
    return Run({"measurements": series})


def first_token(last: float) -> Run:
    times = {"ttft": [0.8, last], "predicted": [0.8, 0.08]}
    return run(ttft_by_shared={"shared": [0, 512], "found": [0, 512], **times})


@pytest.mark.parametrize(
    "last, said",
    [
        (0.05, "should fall by a factor of 16.0. The tokens fall by a factor of 17."),
        (0.08, "fall by a factor of 10.0. The tokens fall by a factor of 17. The time falls less"),
        (0.5, "should fall by a factor of 1.6. The tokens"),
        (0.8, "should stay about the same (a factor of 1.0). The tokens"),
        (1.6, "TTFT should rise by a factor of 2. The tokens fall by a factor of 17."),
        (0.02, "should fall by a factor of 40.0. The tokens fall by a factor of 17."),
        (None, "The factor by which TTFT should fall was not measured here."),
    ],
)
def test_the_predicted_fall_is_said_as_it_is(last, said):
    found = first_token(0.1)
    found.data["measurements"]["ttft_by_shared"]["columns"]["predicted"] = [0.8, last]
    text = ch09.ttft(found)["foretold_finding"]
    assert said in text
    assert ("The time falls less" in text) == (last in (0.08, 0.5))


@pytest.mark.parametrize(
    "apart, said",
    [
        (0.0, "are the same to the last bit"),
        (2e-5, "differ by 2\u00a0×\u00a010⁻⁵ at most"),
        (9.6e-4, "differ by 0.001 at most"),
        (0.3, "differ by 0.3 at most"),
    ],
)
def test_how_far_the_logits_are_apart(apart, said):
    assert ch09.same_logits(apart) == {"same_logits_finding": said}


def served(few_shot, found=960) -> Run:
    columns = {"workload": ["chat", "few-shot"], "prompt_tokens": [2016, 1296]}
    columns |= {"found": [1616, found], "ideal": [1616, 960]}
    columns |= {"computed_without": [2148, 1200], "computed_with": [1074, 300]}
    columns |= {"without": [1.0, 1.0], "with": [1.0, 1 / few_shot]}
    return run(workloads=columns)


@pytest.mark.parametrize(
    "gain, said",
    [
        (0.3, "On no workload does the cache save more than a tenth of the time: the largest"),
        (1.1, "the largest factor is 1.10, on “few-shot”."),
        (3.0, "3 times, with 4 times fewer tokens. The time falls less than the tokens"),
        (4.0, "“few-shot”: 4 times, with 4 times fewer tokens."),
        (5.0, "with 4 times fewer tokens. The tokens explain only a part of this gain."),
    ],
)
def test_the_largest_gain_beside_its_tokens(gain, said):
    text = ch09.workloads(served(gain))["best_finding"]
    assert said in text
    assert ("falls less" in text) == (gain == 3)


@pytest.mark.parametrize(
    "found, said",
    [
        (960, "In each workload the engine finds all that can be found."),
        (954, "at most 0.463 % of a workload's prompt tokens."),
        (None, "The number of tokens that can be found was not measured here."),
    ],
)
def test_whether_all_is_found(found, said):
    assert said in ch09.workloads(served(3, found))["found_finding"]


@pytest.mark.parametrize(
    "last, verdict, goal",
    [
        (0.081, "as predicted", "reaches it"),
        (0.4, "the prediction failed", "does not reach it"),
        (0.9, "the prediction failed", "does not reach it"),
    ],
)
def test_the_first_token(last, verdict, goal):
    said = ch09.ttft(first_token(last))["ttft_finding"]
    assert verdict in said and goal in said
    assert ("fast as" in said) == (last < 0.8)


@pytest.mark.parametrize(
    "samples, kind",
    [
        ([1.004, 1.005], "within"),
        ([1.05, 1.051], "above"),
        ([0.9, 1.15], "cannot tell"),
        ([0.9, 0.901], "within"),
    ],
)
def test_the_cost_of_finding_nothing(samples, kind):
    work = run(workloads={"workload": ["nothing shared"], "without": [1.0], "with": [None]})
    series = work.data["measurements"]["workloads"]
    series["columns"]["with"] = [sum(samples) / 2]
    series["samples"] = {"with": [samples], "without": [[1.0, 1.0]]}
    assert ch09.cost(work).kind == kind


def test_a_cost_that_rounds_to_nothing_has_no_sign():
    work = run(workloads={"workload": ["nothing shared"], "without": [1.0], "with": [0.9998]})
    assert "changes the time by less than 0.1 %, within the 1 %" in ch09.cost(work).text


@pytest.mark.parametrize("ours, goal", [(20.0, "reaches it"), (12.0, "does not reach it")])
def test_the_better_of_two_rivals_counts(ours, goal):
    names = ["ours", "generate_batch", "generate_batch, sharing"]
    beside = run(chat_beside_transformers={"engine": names, "tok_s": [ours, 5.0, 10.0]})
    assert ch09.chat_lead(beside) == ours / 10
    assert goal in ch09.beside(beside)["beside_finding"]


@pytest.mark.parametrize("right, opened", [(0.03, True), (0.19, False), (0.3, False)])
def test_the_channel_is_open_only_where_it_was_seen(right, opened):
    names = ["wrong guess, no salt", "right guess, no salt", "right guess, own salts"]
    probes = run(timing_side_channel={"probe": names, "ttft": [0.2, right, 0.2]})
    said = ch09.leak(probes)["leak_finding"]
    assert ("channel is open" in said) == opened
    assert ("do not reveal the guess" in said) == (right == 0.19)
    assert ("), which no cache explains." in said) == (right == 0.3)


def test_the_winner_is_the_one_with_the_highest_rate():
    orders = {"least recent, tail first": [0.4], "least recent, head first": [0.3]}
    orders |= {"oldest first": [0.5], "random": [0.2], "knows the future": [0.7]}
    known = {"pool": [4], "hit_rate": [0.4], "predicted": [0.4]}
    counted = run(eviction_orders={"pool": [4], **orders}, hit_rate_by_pool=known)
    assert "“oldest first” finds most" in ch09.eviction(counted)["eviction_finding"]
    orders["random"] = [0.5]
    counted = run(eviction_orders={"pool": [4], **orders}, hit_rate_by_pool=known)
    assert "“oldest first” and “random” find most" in ch09.eviction(counted)["eviction_finding"]


def test_a_cache_that_finds_nothing_gets_no_credit():
    work = run(workloads={"workload": ["nothing shared"], "without": [1.0], "with": [0.88]})
    said = ch09.cost(work).text
    assert (
        "−12.0 %: this run shows no cost, and the gain has another cause" in said
        and "within" not in said
    )


@pytest.mark.parametrize("salted, another", [(0.2, False), (0.05, True), (0.4, False)])
def test_a_fast_guess_with_a_salt_has_another_cause(salted, another):
    names = ["wrong guess, no salt", "right guess, no salt", "right guess, own salts"]
    probes = run(timing_side_channel={"probe": names, "ttft": [0.2, 0.03, salted]})
    said = ch09.leak(probes)["salt_finding"]
    assert ("has another cause than a hit" in said) == another
    assert ("although neither finds anything" in said) == (salted == 0.4)


def test_sentences_of_a_recorded_run_say_so_beside_this_runs_tables():
    found = Run({"measurements": {}})
    own, recorded = ch09.render(found), ch09.render(Shown(found))
    for name in ("foretold", "found", "best", "cost", "same", "leak", "salt"):
        said = recorded[f"{name}_finding"]
        assert not own[f"{name}_finding"].startswith("In the recorded run")
        assert said.startswith(("In the recorded run", "The recorded run cannot tell"))
