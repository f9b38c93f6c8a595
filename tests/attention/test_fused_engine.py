"""End to end: attention="fused" answers what the no-cache loop answers, through chunks, preemptions and odd blocks."""

from __future__ import annotations

import pytest

from lib import SamplingParams
from lib.attention.fused_cpu import CpuFusedAttention
from lib.attention.gather import GatherAttention
from tests.helpers import drain, prompt_of

WORK = [(70, 20), (3, 30), (33, 9), (1, 40), (17, 25), (48, 5)]  # (prompt tokens, output tokens)


def run(engine):
    params = [SamplingParams(max_tokens=n, temperature=0, ignore_eos=True) for _, n in WORK]
    ids = [
        engine.add_request(prompt_of(length, seed), p)
        for seed, ((length, _), p) in enumerate(zip(WORK, params))
    ]
    done = drain(engine)
    return [done[i].token_ids for i in ids]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_batched_tokens": 7},
        {"max_num_batched_tokens": 40, "block_size": 5, "num_blocks": 100},
        {"block_size": 4, "num_blocks": 28, "max_num_seqs": 4},
        {"block_size": 1, "num_blocks": 120, "max_num_batched_tokens": 20},
    ],
    ids=["plain", "tiny chunks", "long chunks", "preempted", "blocks of one, preempted"],
)
def test_the_same_tokens_as_without_a_cache(tiny, name, options):
    engine = tiny[name].engine(kv_cache="paged", attention="fused", **options)
    assert isinstance(engine.runner.attention, CpuFusedAttention)
    expected = [
        tiny[name].greedy(prompt_of(length, seed), n) for seed, (length, n) in enumerate(WORK)
    ]
    assert run(engine) == expected
    if options.get("num_blocks", 100) in (28, 120):
        assert engine.stats()["preemptions"] > 0


def test_gather_is_still_there(llama):
    engine = llama.engine(attention="gather")
    assert isinstance(engine.runner.attention, GatherAttention)
    expected = [llama.greedy(prompt_of(length, seed), n) for seed, (length, n) in enumerate(WORK)]
    assert run(engine) == expected
