"""How much room the cache takes, where it comes from, and what is said when there is none."""

from __future__ import annotations

import pytest
import torch

from lib import SamplingParams
from lib.cache import allocate as module
from lib.cache import sizing
from tests.helpers import Tiny, llama_checkpoint

PER_TOKEN = 2 * 2 * 2 * 8 * 4  # K and V, layers, K/V heads, head_dim, bytes of a float32


def test_a_model_len_beyond_the_pool_is_refused_if_somebody_asked_for_it(llama):
    with pytest.raises(
        ValueError,
        match=r"num_blocks 5 .* hold 64 tokens .* max_model_len 65: num_blocks must be >= 6",
    ):
        llama.engine(num_blocks=5, max_model_len=65)
    assert llama.engine(num_blocks=5, max_model_len=64).max_model_len == 64


def test_without_a_model_len_it_is_what_fits(llama):
    assert llama.engine(num_blocks=5).max_model_len == 64
    assert llama.engine(num_blocks=500).max_model_len == 512
    assert llama.engine(kv_cache="none").max_model_len == 512


def test_one_block_is_the_null_block(llama):
    with pytest.raises(ValueError, match="num_blocks 1"):
        llama.engine(num_blocks=1)
    engine = llama.engine(num_blocks=2, block_size=8)
    assert engine.stats()["blocks_total"] == 1 and engine.max_model_len == 8


@pytest.mark.parametrize(
    "budget", [PER_TOKEN * 16 * 2, PER_TOKEN * 16 * 10 + 5, PER_TOKEN * 16 * 100]
)
def test_a_byte_budget_for_the_pool_is_kept_and_used(llama, budget):
    engine = llama.engine(kv_cache_memory_bytes=budget)
    assert budget - PER_TOKEN * 16 < engine.kv_cache.nbytes <= budget
    assert engine.stats()["kv_cache_bytes"] == engine.kv_cache.nbytes


def test_no_more_blocks_than_all_sequences_could_fill(llama):
    engine = llama.engine(kv_cache_memory_bytes=2**40, max_num_seqs=3, max_model_len=40)
    assert engine.stats()["blocks_total"] == 3 * 3


def test_a_budget_below_one_sequence_is_refused_if_somebody_asked_for_its_length(llama):
    with pytest.raises(ValueError, match="less than one sequence of max_model_len 512"):
        llama.engine(kv_cache_memory_bytes=PER_TOKEN * 100, max_model_len=512)
    with pytest.raises(ValueError, match="num_blocks 0"):
        llama.engine(kv_cache_memory_bytes=PER_TOKEN)


def test_contiguous_needs_room_for_all_sequences_at_their_longest(llama):
    with pytest.raises(ValueError) as error:
        llama.engine(
            kv_cache="contiguous",
            kv_cache_memory_bytes=PER_TOKEN * 1000,
            max_num_seqs=8,
            max_model_len=200,
        )
    message = str(error.value)
    for part in (
        "max_num_seqs 8",
        "max_model_len 200",
        "at most 5 sequences",
        "a max_model_len of 125",
    ):
        assert part in message
    engine = llama.engine(
        kv_cache="contiguous",
        kv_cache_memory_bytes=PER_TOKEN * 1000,
        max_num_seqs=8,
        max_model_len=125,
    )
    assert engine.kv_cache.nbytes == PER_TOKEN * 1000


def test_contiguous_without_a_length_takes_the_longest_that_fits(llama):
    engine = llama.engine(
        kv_cache="contiguous",
        kv_cache_memory_bytes=PER_TOKEN * 1000,
        max_num_seqs=8,
        max_model_len=None,
    )
    assert engine.max_model_len == 125
    with pytest.raises(ValueError, match="must be <= 125"):
        engine.add_request([5] * 120, SamplingParams(max_tokens=6))
    with pytest.raises(ValueError, match="max_num_seqs 8"):
        llama.engine(
            kv_cache="contiguous",
            kv_cache_memory_bytes=PER_TOKEN * 7,
            max_num_seqs=8,
            max_model_len=None,
        )


def test_where_contiguous_runs_out_paged_goes_on(llama):
    """The same bytes: a slot a sequence leaves no room for eight, blocks do, because nobody is at the longest."""
    budget = PER_TOKEN * 400
    with pytest.raises(ValueError, match="contiguous KV cache"):
        llama.engine(
            kv_cache="contiguous", kv_cache_memory_bytes=budget, max_num_seqs=8, max_model_len=128
        )
    engine = llama.engine(kv_cache_memory_bytes=budget, max_num_seqs=8, max_model_len=128)
    outputs = engine.generate(
        [[5 + i] * 20 for i in range(8)],
        SamplingParams(max_tokens=8, temperature=0, ignore_eos=True),
    )
    assert all(len(o.token_ids) == 8 for o in outputs) and engine.stats()["preemptions"] == 0


def test_the_pool_comes_from_free_memory(llama, monkeypatch):
    monkeypatch.setattr(
        sizing.psutil,
        "virtual_memory",
        lambda: type("M", (), {"available": PER_TOKEN * 16 * 41 * 2})(),
    )
    engine = llama.engine(num_blocks=None)
    assert engine.kv_cache.num_blocks == 41, "half of what is free"
    monkeypatch.setattr(
        sizing.psutil, "virtual_memory", lambda: type("M", (), {"available": 100})()
    )
    with pytest.raises(ValueError, match="num_blocks 0"):
        llama.engine(num_blocks=None)


def test_a_pool_that_the_machine_does_not_have_is_a_clear_error(llama, monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr(module, "KVCache", fail)
    with pytest.raises(
        ValueError, match=r"a KV cache of 65 x 16 tokens takes .* GiB, which cpu does not have"
    ):
        llama.engine()
    monkeypatch.undo()
    with pytest.raises(ValueError, match="which cpu does not have"):
        llama.engine(num_blocks=10**17)


def test_a_cache_takes_memory_only_where_it_is_written(tmp_path):
    """Zero pages: a large contiguous cache costs nothing at the start."""
    import psutil

    tiny = Tiny(llama_checkpoint(tmp_path, seed=1, max_position_embeddings=2**16))
    before = psutil.Process().memory_info().rss
    engine = tiny.engine(
        kv_cache="contiguous", max_model_len=2**16, max_num_seqs=32, kv_cache_memory_bytes=2**31
    )
    assert engine.kv_cache.nbytes == 2**29
    assert psutil.Process().memory_info().rss - before < 2**27
    engine.generate([[5, 6]], SamplingParams(max_tokens=3))
    assert psutil.Process().memory_info().rss - before < 2**28


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_a_token_are_counted_right(tiny, name, dtype):
    engine = tiny[name].engine(num_blocks=3, block_size=4, dtype=dtype)
    size = torch.float32.itemsize if dtype == "float32" else 2
    assert engine.kv_cache.nbytes == 12 * engine.config.kv_bytes_per_token(size)
