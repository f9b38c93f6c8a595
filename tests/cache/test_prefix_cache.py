"""The prefix cache by itself: what is found, what is kept, what is evicted, and that the books balance."""

from __future__ import annotations

import random

import pytest

from lib import SamplingParams
from lib.cache.prefix_cache import PrefixCachingBlockManager, block_hashes
from lib.core.request import Request
from lib.engine.scheduler import Scheduler


def request(tokens: list[int], salt: str | None = None) -> Request:
    return Request("r", tokens, SamplingParams(), cache_salt=salt)


def computed(manager: PrefixCachingBlockManager, one: Request) -> Request:
    """Admit a request and compute all its tokens."""
    one.num_computed_tokens = manager.admit(one)
    one.num_computed_tokens = one.num_tokens
    manager.publish(one)
    manager.check_integrity()
    return one


def test_the_longest_prefix_of_full_blocks_is_found():
    manager = PrefixCachingBlockManager(20, 4)
    computed(manager, request([*range(10)]))
    for prompt, found in (
        ([*range(10)], 8),
        ([*range(8)], 4),  # exactly two blocks: the last token is computed again
        ([*range(9)], 8),
        ([*range(4), 99, 98, 97, 96, 95], 4),
        ([99, *range(1, 10)], 0),
        ([0, 1, 2], 0),
    ):
        one = request(prompt)
        assert manager.admit(one) == one.num_cached_tokens == found
        manager.check_integrity()
        manager.free(one)
        manager.check_integrity()


def test_equal_blocks_in_different_places_have_different_names():
    block = [7, 8, 9, 7]
    names = block_hashes(request(block * 3), 4, 3)
    assert len(set(names)) == 3
    assert names[0] == block_hashes(request(block), 4, 1)[0]
    # Ids that would read the same as text: 1, 23 and 12, 3.
    assert block_hashes(request([1, 23]), 2, 1) != block_hashes(request([12, 3]), 2, 1)


def test_a_salt_separates_tenants():
    manager = PrefixCachingBlockManager(20, 4)
    computed(manager, request([*range(9)], "tenant a"))
    for salt, found in (("tenant b", 0), (None, 0), ("tenant a", 8)):
        one = request([*range(9)], salt)
        assert manager.admit(one) == found
        manager.free(one)


def test_blocks_without_an_owner_are_found_while_the_pool_is_full():
    manager = PrefixCachingBlockManager(1 + 4, 4)
    manager.free(computed(manager, request([*range(16)])))
    assert manager.num_free_blocks == 0 and manager.num_cached_blocks == 4
    one = request([*range(13)])
    assert manager.admit(one) == 12 and manager.num_evictions == 1
    manager.check_integrity()
    other = request([50, 51])
    assert manager.admit(other) is None and other.block_ids == []
    manager.check_integrity()


def test_an_admission_that_fails_changes_nothing():
    manager = PrefixCachingBlockManager(1 + 4, 4)
    holder = computed(manager, request([*range(100, 108)]))
    manager.free(computed(manager, request([*range(8)])))
    queries = manager.num_queries
    long = request([*range(8), *range(20, 32)])  # two hits, but three more blocks do not fit
    assert manager.admit(long) is None
    assert long.block_ids == [] and long.num_cached_tokens is None
    assert (manager.num_queries, manager.num_cached_blocks) == (queries, 2)
    manager.check_integrity()
    manager.free(holder)
    assert manager.admit(long) is None  # five blocks in a pool of four
    manager.check_integrity()


def test_blocks_to_be_shared_are_not_counted_as_room():
    manager = PrefixCachingBlockManager(1 + 4, 4)
    manager.admit(request([*range(50, 58)]))  # two blocks stay used
    manager.free(computed(manager, request([*range(8)])))
    one = request([*range(14)])  # shares both cached blocks, and there is no other block
    assert manager.admit(one) is None and one.block_ids == []
    manager.check_integrity()


def test_least_recently_used_first_and_the_tail_of_a_sequence_first():
    manager = PrefixCachingBlockManager(1 + 6, 4)
    first, second = [*range(12)], [*range(50, 62)]
    manager.free(computed(manager, request(first)))
    manager.free(computed(manager, request(second)))
    again = request([*first[:4], 99])
    assert manager.admit(again) == 4  # touches the head of the first, evicts its tail
    manager.free(again)
    # Oldest first: first[4:8], the three of second from the last to the first, first[:4].
    for length, left in ((5, (1, 3)), (9, (1, 2)), (13, (1, 1)), (17, (1, 0)), (21, (0, 0))):
        one = request([70 + length] * length)
        assert manager.admit(one) == 0
        found = [len(manager.find(request([*tokens, 1]))) for tokens in (first, second)]
        assert tuple(found) == left
        manager.free(one)
        manager.check_integrity()


def test_two_that_compute_the_same_block_keep_one_name():
    manager = PrefixCachingBlockManager(20, 4)
    one, twin = request([*range(9)]), request([*range(9)])
    assert manager.admit(one) == manager.admit(twin) == 0
    assert manager.is_computing_prefix_of(request([*range(9)]))
    for r in (one, twin):
        r.num_computed_tokens = 9
        manager.publish(r)
        manager.check_integrity()
    assert not manager.is_computing_prefix_of(request([*range(9)]))
    manager.free(one)
    manager.free(twin)
    manager.check_integrity()
    assert manager.num_cached_blocks == 2


def test_a_block_is_not_found_before_its_step_has_succeeded():
    manager = PrefixCachingBlockManager(20, 4)
    one = request([*range(9)])
    manager.admit(one)
    assert manager.admit(request([*range(9)])) == 0
    one.num_computed_tokens = 5  # a chunk: one full block
    manager.publish(one)
    assert manager.admit(request([*range(9)])) == 4
    manager.free(one)  # aborted in the middle of its prompt
    manager.check_integrity()
    assert manager.admit(request([*range(9)])) == 4


def test_forgotten_on_request():
    manager = PrefixCachingBlockManager(20, 4)
    manager.free(computed(manager, request([*range(9)])))
    manager.forget_cached()
    manager.check_integrity()
    assert manager.num_cached_blocks == 0 and manager.num_free_blocks == manager.num_blocks
    assert manager.admit(request([*range(9)])) == 0


def test_a_reset_keeps_what_is_used_and_is_no_eviction():
    manager = PrefixCachingBlockManager(20, 4)
    manager.free(computed(manager, request([*range(50, 59)])))
    holder = computed(manager, request([*range(9)]))
    manager.forget_cached()
    manager.check_integrity()
    assert manager.num_cached_blocks == manager.num_evictions == 0
    assert len(manager.find(request([*range(9)]))) == 2  # still held
    manager.free(holder)
    manager.check_integrity()


def content(tokens: list[int], salt: str | None) -> list[int]:
    """What a model would store for each token: a value that depends on all tokens before it."""
    value, values = hash(salt), []
    for token in tokens:
        value = hash((value, token))
        values.append(value)
    return values


@pytest.mark.parametrize("block_size", [1, 3, 4, 16])
def test_ten_thousand_arrivals_over_a_model_that_only_remembers(block_size):
    """Every token of every step reads exactly what its own prefix would have stored.

    The model is a dictionary from slots to `content`, so a wrong block is seen at once, also where
    a real model would have given the same token.
    """
    rng = random.Random(block_size)
    manager = PrefixCachingBlockManager(1 + -(-48 // block_size) * 2, block_size)
    scheduler = Scheduler(manager, max_num_seqs=4, max_num_batched_tokens=40)
    slots: dict[int, int] = {}
    prefixes = [[rng.randrange(9) for _ in range(32)] for _ in range(5)]
    arrivals = aborts = failures = 0
    while arrivals < 2500 or scheduler.has_unfinished:
        for _ in range(rng.choice((0, 1, 1, 2, 3)) if arrivals < 2500 else 0):
            shared = rng.choice(prefixes)[: rng.randint(0, 32)]
            prompt = shared + [rng.randrange(9) for _ in range(rng.randint(1, 6))]
            params = SamplingParams(max_tokens=rng.randint(1, 10))
            for _ in range(rng.choice((1, 1, 1, 3))):  # n completions
                salt = rng.choice((None, None, "salt"))
                scheduler.add(Request(f"{arrivals}", prompt, params, cache_salt=salt))
            arrivals += 1
        alive = [*scheduler.running, *scheduler.waiting]
        if alive and rng.random() < 0.1:
            scheduler.release([rng.choice(alive)])
            aborts += 1
        scheduled = scheduler.schedule()
        assert scheduled or not scheduler.has_unfinished
        for item in scheduled:
            one, start = item.request, item.request.num_computed_tokens
            values = content(one.token_ids, one.cache_salt)
            where = [
                one.block_ids[i // block_size] * block_size + i % block_size
                for i in range(start + item.num_tokens)
            ]
            assert [slots.get(slot) for slot in where[:start]] == values[:start]
            slots.update(zip(where[start:], values[start:]))
        if rng.random() < 0.03:  # the step fails after it has written: nothing may be published
            victims = list(scheduler.running)
            for item in scheduled:
                for block in item.request.block_ids[
                    item.request.num_computed_tokens // block_size :
                ]:
                    slots.update(dict.fromkeys(range(block * block_size, (block + 1) * block_size)))
            scheduler.release(victims)
            failures += 1
            scheduled = []
        scheduler.update(scheduled)
        for item in scheduled:
            if item.request.num_computed_tokens == item.request.num_tokens:
                item.request.append(rng.randrange(9))
        scheduler.release([item.request for item in scheduled if item.request.finished])
        manager.check_integrity()
    assert manager.num_free_blocks + manager.num_cached_blocks == manager.num_blocks
    assert min(aborts, failures, scheduler.num_preemptions, manager.num_evictions) > 20
    assert 0.1 < manager.num_hits / manager.num_queries < 0.9
