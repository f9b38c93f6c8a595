"""The routing policies: balance, affinity, and what the index of prefixes keeps."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from lib.serving.fleet.prefix_index import PrefixIndex
from lib.serving.fleet.routing import (
    POLICIES,
    LeastLoaded,
    LongestPrefix,
    PowerOfTwo,
    RoundRobin,
    make_router,
)

IDLE = {"a": 0, "b": 0, "c": 0}
NAMES = list(IDLE)


def test_round_robin_takes_turns_and_skips_who_is_gone():
    router = RoundRobin()
    assert [router.choose([], NAMES, IDLE) for _ in range(4)] == ["a", "b", "c", "a"]
    assert {router.choose([], ["a", "c"], IDLE) for _ in range(4)} == {"a", "c"}


def test_least_loaded_takes_the_least_and_turns_among_equals():
    router = LeastLoaded()
    assert router.choose([], NAMES, {"a": 2, "b": 1, "c": 3}) == "b"
    assert {router.choose([], NAMES, IDLE) for _ in range(3)} == set(NAMES)


def test_least_loaded_is_a_plain_search_from_the_next_turn():
    """Against a plain search, in the order that begins after the last turn."""
    router, rng = LeastLoaded(), random.Random(0)
    for turn in range(1, 200):
        replicas = list(range(rng.randint(1, 9)))
        load = {replica: rng.randint(0, 3) for replica in replicas}
        order = [(turn + i) % len(replicas) for i in range(len(replicas))]
        expected = next(r for r in order if load[r] == min(load.values()))
        assert router.choose((), replicas, load) == expected


def test_power_of_two_never_takes_the_most_loaded_and_takes_every_other():
    router, load = PowerOfTwo(), {"a": 5, "b": 0, "c": 1}
    chosen = Counter(router.choose([], NAMES, load) for _ in range(3000))
    assert set(chosen) == {"b", "c"}
    assert abs(chosen["b"] / 3000 - 2 / 3) < 0.05  # b is in two of the three pairs


def test_two_choices_balance_better_than_one():
    """Mitzenmacher: the fullest of n bins has about ln ln n / ln 2 more than the mean, not ln n / ln ln n."""
    bins = list(range(1000))
    two, one = dict.fromkeys(bins, 0), dict.fromkeys(bins, 0)
    router, rng = PowerOfTwo(), random.Random(0)
    for _ in range(1000):
        two[router.choose([], bins, two)] += 1
        one[rng.choice(bins)] += 1
    assert max(two.values()) <= 4 < max(one.values())


def test_the_longest_prefix_wins_and_the_shorter_one_loses():
    router = LongestPrefix()
    router.index.add([1, 2], "a")
    router.index.add([1, 2, 3], "b")
    assert {router.choose([1, 2, 3, 4], NAMES, IDLE) for _ in range(20)} == {"b"}
    # Now b has all four, and a prompt with the first two names goes to either holder, by load.
    assert router.choose([1, 2, 9], NAMES, {"a": 0, "b": 1, "c": 0}) == "a"


def test_a_short_match_does_not_count():
    router = LongestPrefix(min_match=3)
    router.index.add([1, 2], "a")
    assert {router.choose([1, 2], NAMES, {"a": 7, "b": 0, "c": 0}) for _ in range(20)} == {"b", "c"}


def test_balance_wins_over_affinity_beyond_the_limit():
    router = LongestPrefix(max_imbalance=4)
    router.index.add([1, 2], "a")
    assert router.choose([1, 2], NAMES, {"a": 4, "b": 0, "c": 0}) == "a"
    other = router.choose([1, 2], NAMES, {"a": 5, "b": 0, "c": 0})
    assert other in ("b", "c")
    assert router.choose([1, 2], NAMES, {"a": 5, "b": 2, "c": 2}) == other  # it has the prefix now


def test_a_request_that_went_elsewhere_has_its_prefix_there():
    router = LongestPrefix()
    chosen = router.choose([1, 2], NAMES, IDLE)
    other = next(name for name in NAMES if name != chosen)
    router.sent([1, 2, 3], other)
    assert {router.choose([1, 2, 3], NAMES, IDLE) for _ in range(5)} == {other}
    for policy in (RoundRobin(), PowerOfTwo(), LeastLoaded()):
        policy.sent([1], "a")  # they keep nothing


def test_a_replica_that_is_gone_or_forgotten_is_not_chosen():
    router = LongestPrefix()
    router.index.add([1, 2], "a")
    assert router.choose([1, 2], ["b"], {"b": 3}) == "b"
    router.forget("b")
    router.forget("a")
    assert len(router.index) == 0
    assert router.index.longest([1, 2], IDLE) == (0, [])


def test_the_index_forgets_the_least_recent_and_of_one_prompt_the_last_block():
    index = PrefixIndex(capacity=3)
    index.add([1, 2], "a")
    index.add([7, 8], "a")  # 1 and 2 are older, and 2 comes behind 1
    assert len(index) == 3
    assert index.longest([1, 2], ["a"]) == (1, ["a"])
    assert index.longest([7, 8], ["a"]) == (2, ["a"])
    index.add([1], "a")  # used again
    index.add([9], "a")
    assert index.longest([1], ["a"]) == (1, ["a"])
    assert index.longest([7, 8], ["a"])[0] == 1


def test_a_gap_in_a_replicas_prefix_ends_its_match():
    index = PrefixIndex(capacity=10)
    index.add([1, 2, 3], "a")
    index.add([1], "b")
    index.add([3], "b")
    assert index.longest([1, 2, 3], ["a", "b"]) == (3, ["a"])
    assert index.longest([1, 2, 3], ["b"]) == (1, ["b"])


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_serves_one_replica_and_repeats_with_its_seed(policy):
    assert make_router(policy).choose([1], ["x"], {"x": 9}) == "x"
    runs = []
    for _ in range(2):
        router, load = make_router(policy, seed=3), Counter({name: 0 for name in NAMES})
        for i in range(50):
            load[router.choose([i % 5], NAMES, load)] += 1
        runs.append(load)
    assert runs[0] == runs[1] and set(runs[0]) <= set(NAMES)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: make_router("random"), "policy must be one of"),
        (lambda: make_router("round_robin", min_match=2), "only longest_prefix"),
        (lambda: LongestPrefix(min_match=0), "min_match must be >= 1, got 0"),
        (lambda: LongestPrefix(max_imbalance=-1), "max_imbalance must be >= 0, got -1"),
        (lambda: PrefixIndex(0), "capacity must be >= 1, got 0"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
