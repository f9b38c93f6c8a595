"""What the page is told of the engine: every block of a small pool, a bounded summary of a large one."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest

from lib import LLM, SamplingParams
from lib.serving import engine_thread
from lib.serving.engine_snapshot import MAX_SQUARES, take_snapshot
from tests.serving_support import write_checkpoint

LONG = SamplingParams(max_tokens=400, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("snapshot") / "tiny", hidden=16, layers=1)


def engine(tiny, num_blocks: int) -> LLM:
    return LLM(str(tiny), device="cpu", attention="gather", max_num_seqs=4, num_blocks=num_blocks)


def run_two(llm: LLM) -> dict:
    """A snapshot with 3 cached blocks, and two sequences of 100 tokens that share their first 64."""
    llm.generate([[9] * 48], SamplingParams(max_tokens=1))  # ends with 3 full blocks that are kept
    shared = [7] * 64
    llm.add_request(shared + [1] * 36, LONG)
    llm.step()
    llm.add_request(shared + [2] * 36, LONG)
    llm.step()
    return take_snapshot(llm)


def test_a_small_pool_is_named_block_by_block(tiny):
    snapshot = run_two(engine(tiny, 193))
    assert (snapshot["blocks_per_square"], snapshot["squares"]) == (1, [])
    first, second = (row[5] for row in snapshot["running"])
    assert [row[6] for row in snapshot["running"]] == [len(first), len(second)] == [7, 7]
    assert first[:4] == second[:4] and not set(first[4:]) & set(second[4:])
    assert len(snapshot["blocks_cached"]) == snapshot["num_cached"] == 3
    assert snapshot["blocks_total"] == 192 == snapshot["blocks_free"] + 3 + len({*first, *second})


@pytest.mark.parametrize("blocks", [MAX_SQUARES + 1, 3 * MAX_SQUARES])
def test_a_large_pool_is_summed_in_squares(tiny, blocks):
    llm = engine(tiny, blocks + 1)
    snapshot = run_two(llm)
    share = snapshot["blocks_per_square"]
    assert share == -(-blocks // MAX_SQUARES) > 1
    assert snapshot["blocks_cached"] == [] and all(row[5] == [] for row in snapshot["running"])
    assert [row[6] for row in snapshot["running"]] == [7, 7]
    squares = snapshot["squares"]
    held = {block for r in llm.scheduler.running for block in r.block_ids}
    assert sum(in_use for _, _, in_use, _, _ in squares) == len(held) == 10, (
        "shared ones count once"
    )
    assert sum(cached for *_, cached in squares) == 3
    computed = [r.num_computed_tokens for r in llm.scheduler.running]
    assert sum(written for *_, written, _ in squares) == sum(computed) - 64
    for square, index, in_use, written, cached in squares:
        members = range(1 + square * share, 1 + (square + 1) * share)
        counts = [len(held & {*r.block_ids} & {*members}) for r in llm.scheduler.running]
        assert 0 < in_use + cached <= share and written <= 16 * in_use
        assert index == -1 if in_use == 0 else counts[index] == max(counts)


@pytest.mark.parametrize("blocks", [MAX_SQUARES, MAX_SQUARES + 1, 100_000])
def test_the_size_of_a_snapshot_is_bounded(blocks):
    """A pool after hours of traffic: every block is in use or cached."""
    rows = [
        SimpleNamespace(
            request_id=f"cmpl-{n:032}",
            index=0,
            num_prompt_tokens=100,
            num_output_tokens=28,
            num_computed_tokens=128,
            block_ids=list(range(1 + 8 * n, 9 + 8 * n)),
        )
        for n in range(64)
    ]
    cached = range(1 + 8 * 64, 1 + blocks)
    manager = SimpleNamespace(
        num_blocks=blocks,
        num_free_blocks=0,
        num_cached_blocks=len(cached),
        cached_block_ids=cached,
        block_size=16,
        num_queries=1,
        num_hits=0,
    )
    scheduler = SimpleNamespace(running=rows, waiting=[], max_num_seqs=64, num_preemptions=0)
    options = SimpleNamespace(kv_cache="paged")
    drafts = dict(draft_tokens=0, accepted_tokens=0, mean_accepted_length=None)
    llm = SimpleNamespace(
        scheduler=scheduler, manager=manager, options=options, stats=lambda: drafts
    )
    snapshot = take_snapshot(llm)
    assert len(snapshot["squares"]) <= MAX_SQUARES
    assert len(json.dumps(snapshot)) < 30 * MAX_SQUARES


def test_snapshots_that_take_long_are_rare(monkeypatch):
    """The engine's thread spends a bounded share of its time on the page."""
    taken = []

    def slow_snapshot(llm):
        taken.append(time.monotonic())
        time.sleep(0.02)
        return {}

    monkeypatch.setattr(engine_thread, "take_snapshot", slow_snapshot)
    busy = SimpleNamespace(
        has_unfinished=lambda: True, step=lambda: time.sleep(0.002) or [], stats=dict
    )
    thread = engine_thread.EngineThread(lambda: busy, *[lambda _: None] * 3)
    thread.watch(True)
    thread.start()
    time.sleep(0.6)
    assert thread.stop(5) and len(taken) == 1, "the next one is due a second after the first"
