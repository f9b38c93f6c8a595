"""Attention over K and V in 8 bits: gather, contiguous and the compiled kernel agree, and differ little from floats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from lib.attention import int8_vectors
from lib.attention.contiguous import ContiguousAttention
from lib.attention.fused import fused_attention
from lib.attention.gather import GatherAttention
from lib.attention.int8_fused_cpu import Int8CpuFusedAttention
from lib.cache.int8_kv_cache import Int8KVCache, round_heads
from lib.cache.kv_cache import KVCache
from lib.models.config import ModelConfig
from tests.fused_cases import MIXED, batch_of, fill

# Of outputs whose elements are about 1: rounding K and V moves a softmax weight and a value by about 1 / 254.
ROUNDING = 0.03


def caches(heads, kv_heads, size, batch, num_blocks, dtype, seed):
    """An int8 cache and a float one with the same numbers; slots never written are NaN in both."""
    config = ModelConfig("llama", 10, 8, 2, heads, kv_heads, size, 8, 64)
    floats = KVCache(config, num_blocks, batch.block_size, dtype=dtype, device="cpu")
    fill(floats, batch, seed, float("nan"))
    ints = Int8KVCache(config, num_blocks, batch.block_size, dtype=dtype, device="cpu")
    for x, codes, scales in ((floats.k, ints.k, ints.k_scale), (floats.v, ints.v, ints.v_scale)):
        for layer in range(2):
            code, scale = round_heads(x[layer].flatten(0, 1))
            codes[layer].flatten(0, 1).copy_(code)
            scales[layer].flatten(0, 1).copy_(scale)
    return ints, floats


def check(
    work, heads=6, kv_heads=2, size=16, block_size=16, dtype=torch.float32, seed=0, window=None
):
    batch, num_blocks = batch_of(work, block_size, seed)
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(len(batch.input_ids), heads + 2 * kv_heads, size, generator=generator)
    q, k, v = qkv.to(dtype).split((heads, kv_heads, kv_heads), dim=1)
    ints, floats = caches(heads, kv_heads, size, batch, num_blocks, dtype, seed)
    fused = Int8CpuFusedAttention(ints)(1, q, k, v, batch, window)
    assert fused.dtype == dtype and not fused.isnan().any(), (
        "a slot that was never written was read"
    )
    for x in (ints.k_scale, ints.v_scale):
        x.nan_to_num_(0.0)  # a masked read multiplies the slots behind a sequence by 0
    codes = ints.k.clone(), ints.v.clone()
    gathered = GatherAttention(ints)(1, q, k, v, batch, window)
    assert torch.equal(ints.k, codes[0]) and torch.equal(ints.v, codes[1]), "stores differ"
    atol, rtol = (2e-6, 1e-5) if dtype == torch.float32 else (1e-2, 2e-2)
    torch.testing.assert_close(fused, gathered, atol=atol, rtol=rtol)
    for x in (floats.k, floats.v):
        x.nan_to_num_(0.0)
    exact = GatherAttention(floats)(1, q, k, v, batch, window).float()
    assert (fused.float() - exact).abs().max() < ROUNDING
    return fused, exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("block_size", [1, 7, 16, 64])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 7])
def test_decode_and_chunks_in_one_batch(dtype, block_size, group):
    check(MIXED, heads=2 * group, kv_heads=2, block_size=block_size, dtype=dtype)


@given(data=st.data())
def test_random_batches(data):
    length = st.integers(1, 20) | st.just(1)
    work = data.draw(st.lists(st.tuples(length, st.integers(0, 90)), min_size=1, max_size=6))
    kv_heads, group = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2, 3, 6]))
    check(
        work,
        kv_heads * group,
        kv_heads,
        size=data.draw(st.sampled_from([8, 16, 20, 64, 80, 128])),
        block_size=data.draw(st.integers(1, 64)),
        seed=data.draw(st.integers(0, 99)),
        dtype=data.draw(st.sampled_from([torch.float32, torch.bfloat16])),
        window=data.draw(st.none() | st.integers(1, 60)),
    )


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_any_number_of_threads_gives_the_same(monkeypatch, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr("numba.get_num_threads", lambda: threads)
    check([(1, 2000)], size=64)
    check([(1, 700), (1, 3), (12, 500), (1, 64)])


def test_the_error_is_that_of_the_stated_rounding_not_zero():
    """Else the float cache would have been read."""
    fused, exact = check([(1, 500)] * 4, size=64)
    assert 1e-5 < (fused - exact).abs().max()


@pytest.mark.parametrize("work", [[(1, 30), (1, 7), (1, 0)], [(5, 20), (1, 4)], [(6, 0), (6, 0)]])
def test_contiguous_reads_what_gather_reads(work):
    """One block per sequence is a contiguous cache, and a paged one."""
    batch, num_blocks = batch_of(work, 64)
    q, k, v = torch.randn(len(batch.input_ids), 10, 16).split((6, 2, 2), dim=1)
    outs = []
    for attention in (ContiguousAttention, GatherAttention):
        ints, _ = caches(6, 2, 16, batch, num_blocks, torch.float32, 0)
        for x in (ints.k_scale, ints.v_scale):
            x.nan_to_num_(0.0)
        outs.append(attention(ints)(0, q, k, v, batch))
    torch.testing.assert_close(*outs, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_spoil_their_own_sequence_only(bad):
    batch, num_blocks = batch_of([(1, 40), (1, 300), (3, 20), (1, 5)], 16)
    qkv = torch.randn(6, 10, 16, generator=torch.Generator().manual_seed(0))
    outs = []
    for value in (0.5, bad):
        ints, _ = caches(6, 2, 16, batch, num_blocks, torch.float32, 0)
        rows = qkv.clone()
        rows[1, 9, 3] = value  # one element of one head of V
        outs.append(Int8CpuFusedAttention(ints)(0, *rows.split((6, 2, 2), dim=1), batch))
    others = [0, 2, 3, 4, 5]
    assert torch.equal(outs[0][others], outs[1][others]) and outs[0].isfinite().all()
    assert outs[1][1, 3:].isnan().all() and outs[1][1, :3].isfinite().all()


def test_codes_are_converted_in_vector_registers():
    """Compiled anew, because code that came from disk has no assembly."""
    dot = njit(int8_vectors.dot.py_func)
    codes = torch.randint(-127, 128, (4, 64), dtype=torch.int8).numpy()
    q, out = np.random.rand(3, 64).astype(np.float32), np.zeros((3, 4), np.float32)
    dot(codes, 0, np.arange(4) * 64, 4, 3, q, 0, 256, 64 // int8_vectors.LANES, out, 0, 16)
    np.testing.assert_allclose(out, q @ codes.T.astype(np.float32), rtol=1e-5, atol=1e-3)
    (assembly,) = dot.inspect_asm().values()
    if "zmm" in assembly or "ymm" in assembly:  # x86
        assert "vpmovsxbd" in assembly and "vcvtdq2ps" in assembly


def test_an_int8_cache_is_not_read_as_floats():
    batch, num_blocks = batch_of([(1, 4)], 16)
    ints, _ = caches(6, 2, 16, batch, num_blocks, torch.float32, 0)
    with pytest.raises(ValueError, match="dtype must be one of .* got int8"):
        fused_attention(ints)


def test_a_decode_step_makes_no_float_copy_of_what_it_reads(monkeypatch):
    batch, num_blocks = batch_of([(1, 300), (3, 20)], 16)
    ints, _ = caches(6, 2, 16, batch, num_blocks, torch.float32, 0)
    attention = Int8CpuFusedAttention(ints)
    for name in ("read", "as_stored", "_floats"):
        monkeypatch.setattr(ints, name, None)
    attention(0, *torch.randn(4, 10, 16).split((6, 2, 2), dim=1), batch)
