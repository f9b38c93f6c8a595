"""The pool, the slots, and the slots that tokens are written to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib import SamplingParams
from lib.cache.block_manager import NULL_BLOCK, BlockManager
from lib.cache.kv_cache import KVCache, kv_cache_bytes
from lib.cache.slot_manager import SlotManager
from lib.core.batch import Batch, Scheduled
from lib.core.request import Request
from lib.models.checkpoint import GPT2_CONFIG


def request(tokens: int = 5) -> Request:
    return Request("r", list(range(100, 100 + tokens)), SamplingParams())


@given(
    block_size=st.sampled_from([1, 2, 4, 16]),
    events=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 70)), max_size=60),
)
def test_allocation_gives_what_is_needed_or_nothing(block_size, events):
    manager = BlockManager(12, block_size)
    requests = [request() for _ in range(6)]
    for who, tokens in events:
        one, free = requests[who], manager.num_free_blocks
        held = list(one.block_ids)
        if tokens == 0:
            manager.free(one)
            assert one.block_ids == [] and manager.num_free_blocks == free + len(held)
            continue
        needed = max(0, -(-tokens // block_size) - len(held))
        assert manager.allocate(one, tokens) == (needed <= free)
        if needed <= free:
            assert one.block_ids[: len(held)] == held and len(one.block_ids) == len(held) + needed
            assert manager.num_free_blocks == free - needed
        else:
            assert one.block_ids == held and manager.num_free_blocks == free, (
                "a failed allocation changed something"
            )
        everything = [b for r in requests for b in r.block_ids]
        assert len(set(everything)) == len(everything) and NULL_BLOCK not in everything
        assert len(everything) + manager.num_free_blocks == manager.num_blocks == 11


def test_a_block_boundary_is_exact():
    manager, one = BlockManager(10, 16), request()
    for tokens, blocks in ((1, 1), (15, 1), (16, 1), (17, 2), (32, 2), (33, 3)):
        assert manager.allocate(one, tokens) and len(one.block_ids) == blocks


def test_shared_blocks_are_freed_by_their_last_holder():
    manager, one, other = BlockManager(10, 4), request(), request()
    manager.allocate(one, 8)
    manager.share(other, one.block_ids)
    manager.free(one)
    assert manager.num_free_blocks == 7
    manager.free(other)
    assert manager.num_free_blocks == 9
    with pytest.raises(ValueError, match="is free and cannot be shared"):
        manager.share(one, [3])
    manager.allocate(one, 1)
    with pytest.raises(ValueError, match="already holds"):
        manager.share(one, one.block_ids)


def test_freeing_twice_is_seen():
    manager, one = BlockManager(10, 4), request()
    manager.allocate(one, 8)
    blocks = list(one.block_ids)
    manager.free(one)
    manager.free(one)  # holds nothing: nothing happens
    one.block_ids = blocks
    with pytest.raises(RuntimeError, match="freed twice"):
        manager.free(one)


@pytest.mark.parametrize("num_blocks", [1, 0, -3])
def test_a_pool_needs_a_block_beside_the_null_block(num_blocks):
    with pytest.raises(ValueError, match=f"num_blocks must be >= 2.*got {num_blocks}"):
        BlockManager(num_blocks, 16)


def test_slots_stay_together():
    manager, requests = SlotManager(4, 32), [request() for _ in range(5)]
    assert [manager.allocate(r, 5) for r in requests] == [True] * 4 + [False]
    assert [r.block_ids for r in requests] == [[0], [1], [2], [3], []]
    assert manager.allocate(requests[0], 32) and requests[0].block_ids == [0]
    with pytest.raises(ValueError, match="num_tokens must be at most 32"):
        manager.allocate(requests[0], 33)
    manager.free(requests[2]), manager.free(requests[1])
    assert manager.allocate(requests[4], 1) and requests[4].block_ids == [1], (
        "the lowest slot first"
    )


@given(
    block_size=st.sampled_from([1, 2, 4, 16]),
    seed=st.integers(0, 999),
    rows=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=5),
)
def test_batch_build_against_the_definition(block_size, seed, rows):
    rng = np.random.default_rng(seed)
    scheduled = []
    free = list(rng.permutation(np.arange(1, 400)))
    for done, new in rows:
        one = Request(
            "r",
            rng.integers(0, 99, done + new + int(rng.integers(0, 3))).tolist(),
            SamplingParams(),
        )
        one.num_computed_tokens = done
        one.block_ids = [
            int(free.pop()) for _ in range(-(-(done + new) // block_size) + int(rng.integers(0, 2)))
        ]
        scheduled.append(Scheduled(one, new))
    batch = Batch.build(scheduled, block_size)
    tokens = [
        (s.request, p)
        for s in scheduled
        for p in range(s.request.num_computed_tokens, s.request.num_computed_tokens + s.num_tokens)
    ]
    assert batch.input_ids.tolist() == [r.token_ids[p] for r, p in tokens]
    assert batch.positions.tolist() == [p for _, p in tokens]
    assert batch.slot_mapping.tolist() == [
        r.block_ids[p // block_size] * block_size + p % block_size for r, p in tokens
    ]
    assert batch.query_start_loc.tolist() == [
        sum(n for _, n in rows[:i]) for i in range(len(rows) + 1)
    ]
    assert batch.seq_lens.tolist() == batch.kv_lens == [done + new for done, new in rows]
    assert batch.query_lens == [new for _, new in rows]
    assert batch.logits_indices.tolist() == [
        sum(n for _, n in rows[: i + 1]) - 1 for i in range(len(rows))
    ]
    for row, s in zip(batch.block_table.tolist(), scheduled):
        held = s.request.block_ids
        assert row == held + [NULL_BLOCK] * (len(row) - len(held))
    assert (
        batch.input_ids.dtype,
        batch.positions.dtype,
        batch.slot_mapping.dtype,
        batch.logits_indices.dtype,
    ) == (torch.int64,) * 4
    assert (batch.query_start_loc.dtype, batch.seq_lens.dtype, batch.block_table.dtype) == (
        torch.int32,
    ) * 3


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Batch.build([])


def test_what_is_derived_is_derived_once():
    batch, calls = Batch.of_prompts([[1, 2]]), []
    derive = lambda b: calls.append(b) or 5  # noqa: E731
    assert batch.derive(derive) == batch.derive(derive) == 5 and len(calls) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kv_cache_stores_where_the_slots_say_and_counts_its_bytes(dtype):
    cache = KVCache(GPT2_CONFIG, 5, 4, dtype=dtype, device="cpu")
    assert cache.k[0].shape == cache.v[11].shape == (5, 4, 12, 64)
    assert (
        cache.nbytes == kv_cache_bytes(GPT2_CONFIG, 20, dtype) == 20 * 2 * 12 * 768 * dtype.itemsize
    )
    assert not cache.k.any() and not cache.v.any()
    k, v = torch.randn(3, 12, 64).to(dtype), torch.randn(3, 12, 64).to(dtype)
    cache.store(7, k, v, torch.tensor([9, 4, 19]))
    assert (
        torch.equal(cache.k[7, 2, 1], k[0])
        and torch.equal(cache.v[7, 1, 0], v[1])
        and torch.equal(cache.k[7, 4, 3], k[2])
    )
    assert cache.k.count_nonzero() == k.count_nonzero(), "wrote elsewhere too"
