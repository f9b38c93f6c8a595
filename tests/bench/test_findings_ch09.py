"""Chapter 9's sentences follow its numbers, also where a prediction or a goal fails."""

from __future__ import annotations

import pytest

from lib.bench.findings.prefix_caching import ch09_prefix_caching as ch09
from lib.bench.records.files import Run


def run(**measurements) -> Run:
    series = {
        name.replace("__", " "): {
            "unit": "s",
            "params": {"knee": 8},
            "seed": 0,
            "columns": columns,
            "samples": {},
        }
        for name, columns in measurements.items()
    }
    return Run({"measurements": series})


def first_token(last: float) -> Run:
    times = {"ttft": [0.8, last], "predicted": [0.8, 0.08]}
    return run(ttft_by_shared={"shared": [0, 512], **times})


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
    assert ("channel is open" in ch09.leak(probes)["leak_finding"]) == opened


def test_the_winner_is_the_one_with_the_highest_rate():
    orders = {"least recent, tail first": [0.4], "least recent, head first": [0.3]}
    orders |= {"oldest first": [0.5], "random": [0.2], "knows the future": [0.7]}
    counted = run(
        eviction_orders={"pool": [4], **orders},
        hit_rate_by_pool={"pool": [4], "hit_rate": [0.4], "predicted": [0.4]},
    )
    assert "“oldest first” finds most" in ch09.eviction(counted)["eviction_finding"]


def test_a_cache_that_finds_nothing_gets_no_credit():
    work = run(workloads={"workload": ["nothing shared"], "without": [1.0], "with": [0.88]})
    said = ch09.cost(work).text
    assert (
        "-12.0 %: this run shows no cost, and the gain has another cause" in said
        and "within" not in said
    )


@pytest.mark.parametrize("salted, another", [(0.2, False), (0.05, True), (0.4, False)])
def test_a_fast_guess_with_a_salt_has_another_cause(salted, another):
    names = ["wrong guess, no salt", "right guess, no salt", "right guess, own salts"]
    probes = run(timing_side_channel={"probe": names, "ttft": [0.2, 0.03, salted]})
    assert ("has another cause than a hit" in ch09.leak(probes)["salt_finding"]) == another
