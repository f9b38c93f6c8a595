"""The schedulers and cache managers alone, without a model: ten thousand events in seconds."""

from __future__ import annotations

import random
import time

import pytest

from lib import SamplingParams
from lib.cache.block_manager import BlockManager
from lib.cache.manager import NoCache
from lib.cache.slot_manager import SlotManager
from lib.core.request import Request, Status
from lib.engine.scheduler import Scheduler
from lib.engine.static_scheduler import StaticScheduler


def request(name: str, prompt: int, max_tokens: int = 10) -> Request:
    return Request(name, [1] * prompt, SamplingParams(max_tokens=max_tokens))


def step(scheduler: Scheduler) -> list[str]:
    """One step of an engine whose model says 7 to everything; the ids of who got a token."""
    scheduled = scheduler.schedule()
    complete = [
        s.request
        for s in scheduled
        if s.request.num_computed_tokens + s.num_tokens == s.request.num_tokens
    ]
    scheduler.update(scheduled)
    for each in complete:
        each.append(7)
    scheduler.release([each for each in complete if each.finished])
    return [each.request_id for each in complete]


def managers():
    return {"paged": BlockManager(40, 4), "contiguous": SlotManager(6, 96), "none": NoCache(96)}


@pytest.mark.parametrize("kind", [Scheduler, StaticScheduler])
@pytest.mark.parametrize("cache", ["paged", "contiguous", "none"])
def test_ten_thousand_events(kind, cache):
    """Arrivals, aborts and steps at random; books balance at every event, nobody is lost, and it takes seconds."""
    rng, manager = random.Random(f"{kind.__name__} {cache}"), managers()[cache]
    scheduler = kind(manager, max_num_seqs=6, max_num_batched_tokens=32)
    alive: dict[str, Request] = {}
    arrived = ended = preempted = 0
    began = time.perf_counter()
    for event in range(10_000):
        choice = rng.random()
        if choice < 0.12 and len(alive) < 30:
            new = request(f"r{event}", rng.randint(1, 60), rng.randint(1, 36))
            scheduler.add(new)
            alive[new.request_id] = new
            arrived += 1
        elif choice < 0.14 and alive:
            victim = alive.pop(rng.choice(list(alive)))
            scheduler.release([victim])
            victim.finish("abort")
            ended += 1
        else:
            unfinished = scheduler.has_unfinished
            scheduled = scheduler.schedule()
            assert bool(scheduled) == unfinished, "a step without work while someone waits"
            assert len(scheduled) <= 6 and len({id(s.request) for s in scheduled}) == len(scheduled)
            tokens = sum(s.num_tokens for s in scheduled)
            assert tokens <= 32 or (len(scheduled) == 1 and cache == "none")
            assert all(s.num_tokens >= 1 for s in scheduled)
            complete = [
                s.request
                for s in scheduled
                if s.request.num_computed_tokens + s.num_tokens == s.request.num_tokens
            ]
            scheduler.update(scheduled)
            for each in complete:
                each.append(7)
            done = [each for each in complete if each.finished]
            scheduler.release(done)
            for each in done:
                del alive[each.request_id]
                ended += 1
        assert {id(r) for r in scheduler.running} | {id(r) for r in scheduler.waiting} == set(
            map(id, alive.values())
        )
        assert len(scheduler.running) + len(scheduler.waiting) == len(alive)
        assert all(r.status is Status.RUNNING for r in scheduler.running)
        assert all(r.status is Status.WAITING and not r.block_ids for r in scheduler.waiting)
        held = [block for r in alive.values() for block in r.block_ids]
        assert len(set(held)) == len(held)
        assert len(held) + manager.num_free_blocks == manager.num_blocks
        if event % 10 == 0:
            manager.check_integrity(alive.values())
    preempted = scheduler.num_preemptions
    while alive:
        before = len(alive)
        for _ in range(3000):
            step(scheduler)
            alive = {k: r for k, r in alive.items() if not r.finished}
            if len(alive) < before:
                break
        else:
            raise AssertionError("nobody finishes any more")
    assert manager.num_free_blocks == manager.num_blocks and not scheduler.has_unfinished
    assert arrived > 300 and ended > 200
    assert (preempted > 0) == (cache == "paged"), "only a shared pool runs out in the middle"
    assert time.perf_counter() - began < 30


def test_first_come_first_served():
    scheduler = Scheduler(BlockManager(100, 4), max_num_seqs=2, max_num_batched_tokens=64)
    for name in "abcd":
        scheduler.add(request(name, 5, 3))
    order = [step(scheduler) for _ in range(6)]
    assert order == [["a", "b"]] * 3 + [["c", "d"]] * 3


def test_without_a_cache_nobody_overtakes():
    """A and B do not fit into one step together. C and D would fit beside A, and would pass B again and again."""
    scheduler = Scheduler(NoCache(96), max_num_seqs=8, max_num_batched_tokens=32)
    scheduler.add(request("a", 20, 8)), scheduler.add(request("b", 20, 2))
    order = [step(scheduler)]
    scheduler.add(request("c", 5, 2)), scheduler.add(request("d", 5, 2))
    while scheduler.has_unfinished:
        order.append(step(scheduler))
    # In its second step B has 21 tokens, which with C's 6 leave no room for D's 6.
    assert order == [["a"]] * 8 + [["b", "c", "d"], ["b", "c"], ["d"]]


def test_without_a_cache_a_stream_of_newcomers_does_not_pass():
    scheduler = Scheduler(NoCache(96), max_num_seqs=8, max_num_batched_tokens=32)
    scheduler.add(request("a", 20, 4)), scheduler.add(request("b", 20, 1))
    began = []
    for i in range(12):
        scheduler.add(request(f"n{i}", 5, 2))
        began += [name for name in step(scheduler) if name not in began]
    assert began[:2] == ["a", "b"] and began[2:] == [f"n{i}" for i in range(len(began) - 2)]


def test_integrity_is_checked():
    for make in (lambda: BlockManager(10, 4), lambda: SlotManager(4, 32)):
        manager, one, other = make(), request("one", 9), request("other", 3)
        assert manager.allocate(one, 9) and manager.allocate(other, 3)
        manager.check_integrity([one, other])
        with pytest.raises(RuntimeError):
            manager.check_integrity([one])  # a block has leaked
        with pytest.raises(RuntimeError):
            manager.check_integrity([one, other, other])  # or has one owner too many
        blocks, one.block_ids = one.block_ids, [0, *one.block_ids[1:]]
        if isinstance(manager, BlockManager):
            with pytest.raises(RuntimeError):
                manager.check_integrity([one, other])  # the null block
        one.block_ids = blocks
        manager.free(one)
        with pytest.raises(RuntimeError):
            manager.check_integrity([one, other, request("third", 3), _holding(blocks)])
        manager.reset()
        manager.check_integrity([])
        assert manager.num_free_blocks == manager.num_blocks
    NoCache(96).check_integrity([request("one", 3)])
    with pytest.raises(RuntimeError):
        NoCache(96).check_integrity([_holding([1])])


def _holding(blocks: list[int]) -> Request:
    made = request("holding", 3)
    made.block_ids = blocks
    return made


def test_a_large_request_at_the_head_is_not_overtaken():
    scheduler = Scheduler(BlockManager(9, 4), max_num_seqs=8, max_num_batched_tokens=64)
    scheduler.add(request("runs", 16, 4))
    step(scheduler)
    scheduler.add(request("large", 20, 4))
    scheduler.add(request("small", 1, 1))
    assert step(scheduler) == ["runs"], (
        "small would fit, but large came first and would wait for ever"
    )
    assert [r.request_id for r in scheduler.waiting] == ["large", "small"]


def test_blocks_are_counted_before_a_request_is_admitted():
    """All of a prompt must have room, not only the chunk that the step computes."""
    scheduler = Scheduler(BlockManager(5, 4), max_num_seqs=8, max_num_batched_tokens=4)
    scheduler.add(request("a", 4, 8))
    scheduler.add(request("b", 12, 2))
    step(scheduler), step(scheduler)
    assert [r.request_id for r in scheduler.running] == ["a"]
    assert not scheduler.waiting[0].block_ids


def test_the_youngest_is_preempted_and_comes_back_first():
    scheduler = Scheduler(BlockManager(7, 2), max_num_seqs=8, max_num_batched_tokens=64)
    old, young = request("old", 4, 8), request("young", 4, 8)
    scheduler.add(old), scheduler.add(young)
    while not scheduler.num_preemptions:
        step(scheduler)
    assert list(scheduler.waiting) == [young] and young.status is Status.WAITING
    assert young.num_computed_tokens == 0 and young.block_ids == [] and young.num_output_tokens > 0
    assert young.metrics.num_preemptions == 1 and old.metrics.num_preemptions == 0
    scheduler.add(request("later", 1, 1))
    tokens = young.num_tokens
    while young.status is Status.WAITING:
        step(scheduler)
    assert young.num_tokens >= tokens and old.finished


def test_a_step_spends_its_budget_on_running_sequences_first():
    scheduler = Scheduler(BlockManager(100, 4), max_num_seqs=8, max_num_batched_tokens=10)
    scheduler.add(request("a", 4)), scheduler.add(request("b", 4))
    step(scheduler)
    scheduler.add(request("long", 30))
    chunks = [
        {s.request.request_id: s.num_tokens for s in scheduled}
        for scheduled in _steps(scheduler, 4)
    ]
    assert chunks == [{"a": 1, "b": 1, "long": 8}] * 3 + [{"a": 1, "b": 1, "long": 6}]


def _steps(scheduler: Scheduler, count: int):
    for _ in range(count):
        scheduled = scheduler.schedule()
        yield list(scheduled)
        complete = [
            s.request
            for s in scheduled
            if s.request.num_computed_tokens + s.num_tokens == s.request.num_tokens
        ]
        scheduler.update(scheduled)
        for each in complete:
            each.append(7)


def test_static_waits_for_the_last_of_the_batch():
    scheduler = StaticScheduler(SlotManager(2, 64), max_num_seqs=2, max_num_batched_tokens=64)
    for name, tokens in (("short", 2), ("long", 5), ("next", 1)):
        scheduler.add(request(name, 3, tokens))
    assert [step(scheduler) for _ in range(6)] == [["short", "long"]] * 2 + [["long"]] * 3 + [
        ["next"]
    ]


def test_preemption_in_a_static_batch_waits_for_the_next():
    scheduler = StaticScheduler(BlockManager(7, 2), max_num_seqs=4, max_num_batched_tokens=64)
    old, young = request("old", 4, 8), request("young", 4, 8)
    scheduler.add(old), scheduler.add(young)
    while not young.finished:
        step(scheduler)
    assert old.finished and young.metrics.num_preemptions == 1 and young.num_output_tokens == 8


def test_releasing_twice_is_harmless_and_releasing_nobody_too():
    manager = BlockManager(10, 4)
    scheduler = Scheduler(manager, 4, 64)
    one = request("one", 5)
    scheduler.add(one)
    step(scheduler)
    scheduler.release([])
    scheduler.release([one])
    scheduler.release([one])
    assert manager.num_free_blocks == manager.num_blocks
