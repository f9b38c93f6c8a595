"""K and V in 8 bits: what a slot gives back, how many bytes it takes, and numbers that are not finite."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.attention.int8_store import store
from lib.cache.int8_kv_cache import Int8KVCache, int8_kv_bytes_per_token, round_heads
from lib.cache.kv_cache import KVCache, kv_cache_bytes
from lib.models.checkpoint import GPT2_CONFIG
from lib.models.config import ModelConfig

CONFIG = ModelConfig("llama", 10, 8, 2, 6, 3, 64, 8, 64)  # 2 layers, 3 K/V heads of 64


def cache_of(dtype=torch.float32, config=CONFIG) -> Int8KVCache:
    return Int8KVCache(config, 4, 5, dtype=dtype, device="cpu")


@given(
    seed=st.integers(0, 999),
    exponent=st.integers(-30, 30),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_an_element_is_off_by_at_most_half_a_scale(seed, exponent, dtype):
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(2, 3, 3, 64, generator=generator) * 10.0**exponent).to(dtype)
    cache, slots = cache_of(), torch.tensor([9, 4, 19])
    cache.store(1, k, v, slots)
    for x, read, again, scale in zip(
        (k, v),
        cache.read(1, lambda x: x.flatten(0, 1)[slots]),
        cache.as_stored(1, k, v, slots),
        (cache.k_scale, cache.v_scale),
    ):
        scale = scale[1].flatten(0, 1)[slots]
        assert torch.equal(read, again) and torch.equal(
            scale, x.float().abs().amax(-1, keepdim=True) * torch.tensor(1 / 127)
        )
        assert ((x.float() - read).abs() <= scale * (0.5 + 1e-4)).all()
    assert not cache.k[0].any() and cache.k[1].flatten(0, 1)[slots].abs().amax(-1).eq(127).all()
    others = [s for s in range(20) if s not in (4, 9, 19)]
    assert not cache.k[1].flatten(0, 1)[others].any(), "wrote elsewhere too"


def test_a_large_head_does_not_change_the_scale_of_another_head_or_token():
    x = torch.randn(3, 3, 64, generator=torch.Generator().manual_seed(0))
    codes, scale = round_heads(x)
    x[1, 2] *= 1000
    louder, its_scale = round_heads(x)
    changed = torch.zeros(3, 3, dtype=torch.bool)
    changed[1, 2] = True
    assert torch.equal(codes[~changed], louder[~changed])
    assert torch.equal(scale[~changed], its_scale[~changed])
    assert its_scale[1, 2] == pytest.approx(1000 * scale[1, 2].item())


def test_rows_of_zeros_and_of_subnormal_numbers_are_zeros():
    x = torch.zeros(3, 3, 64)
    x[1] = 1e-40
    codes, scale = round_heads(x)
    assert not codes.any() and not (codes * scale).any() and scale.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_reads_as_nan_in_its_own_head_until_it_is_removed(bad):
    cache, slots = cache_of(), torch.tensor([6, 7])
    k, v = torch.randn(2, 2, 3, 64, generator=torch.Generator().manual_seed(0))
    v[0, 1, 5] = bad
    cache.store(0, k, v, slots)
    _, values = cache.as_stored(0, k, v, slots)
    assert values[0, 1].isnan().all()
    values[0, 1] = 0
    assert values.isfinite().all()
    cache.remove_non_finite([1], 3)  # block 1 holds slots 5 .. 9
    assert cache.v_scale[0, 1, 1, 1] == 0 and cache.v_scale[0, 1, 2].all()
    assert torch.equal(cache.as_stored(0, k, v, slots)[1], values)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.nan_to_num(nan=-1.0, posinf=-1.0), b.nan_to_num(nan=-1.0, posinf=-1.0))


@given(
    seed=st.integers(0, 999),
    exponent=st.integers(-42, 38),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    bad=st.sampled_from([0.5, 0.0, float("nan"), float("inf"), 1e-45]),
    size=st.sampled_from([1, 8, 20, 64]),
)
def test_the_compiled_store_writes_what_pytorch_writes(seed, exponent, dtype, bad, size):
    config = ModelConfig("llama", 10, 8, 2, 4, 2, max(size, 2), 8, 64)
    size = config.head_dim
    qkv = torch.randn(3, 8, size, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    qkv[1, 5, 0] = bad
    qkv[2, 7] = 0
    qkv[0, 6] = 2.5 * qkv[0, 6].sign()  # ties: K / scale is not an integer plus a half, but close
    _, k, v = qkv.to(dtype).split((4, 2, 2), dim=1)  # views with gaps, as the models hand them over
    slots = torch.tensor([3, 17, 8])
    expected, ours = cache_of(config=config), cache_of(config=config)
    expected.store(1, k, v, slots)
    bits = [x.view(torch.uint16).numpy() if dtype == torch.bfloat16 else x.numpy() for x in (k, v)]
    store(
        *bits,
        slots.numpy(),
        *(x[1].flatten(0, 1).numpy() for x in (ours.k, ours.v)),
        *(x[1].flatten(0, 1)[..., 0].numpy() for x in (ours.k_scale, ours.v_scale)),
    )
    assert torch.equal(ours.k, expected.k) and torch.equal(ours.v, expected.v)
    assert _same_bits(ours.k_scale, expected.k_scale)
    assert _same_bits(ours.v_scale, expected.v_scale)


@pytest.mark.parametrize("config", [CONFIG, GPT2_CONFIG], ids=["3 heads of 64", "gpt2"])
def test_bytes_of_codes_and_scales_are_all_counted(config):
    ints = Int8KVCache(config, 4, 5, dtype=torch.float32, device="cpu")
    floats = KVCache(config, 4, 5, dtype=torch.float32, device="cpu")
    heads = 2 * config.num_layers * config.num_kv_heads
    assert ints.nbytes == 20 * int8_kv_bytes_per_token(config) == 20 * heads * (64 + 4)
    assert floats.nbytes == 20 * kv_cache_bytes(config, 1, torch.float32)
    assert 3.5 < floats.nbytes / ints.nbytes < 4
    held = sum(x.nbytes for x in vars(ints).values() if isinstance(x, torch.Tensor))
    assert held == ints.nbytes, "no float copy beside the codes"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_reads_have_the_models_type(dtype):
    cache, x = cache_of(dtype), torch.ones(1, 3, 64, dtype=dtype)
    cache.store(0, x, x, torch.tensor([5]))
    for read in cache.read(0, lambda x: x[1:2, :1]):
        assert read.dtype == dtype and read.shape == (1, 1, 3, 64) and (read == 1).all()
