"""What the launches are made of: splits that fill the GPU, and the configurations that are refused."""

from __future__ import annotations

import pytest
import torch

from lib.attention.fused import why_not_fused
from lib.attention.triton_config import Gpu, decode_tiles, num_splits, why_not_on
from lib.core.device import pick_dtype

CUDA = torch.device("cuda")
GPUS = {"T4": Gpu(75, 40), "L4": Gpu(89, 58), "A100": Gpu(80, 108), "H100": Gpu(90, 132)}


def filled(gpu: Gpu, programs_per_sm: int, units: int, splits: int) -> float:
    """Share of the waves' places that have a program."""
    wave = gpu.processors * programs_per_sm
    return units * splits / wave / -(-units * splits // wave)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
@pytest.mark.parametrize("kv_heads", [2, 3, 8, 12], ids=lambda n: f"{n} kv heads")
def test_splits_fill_80_percent_of_the_waves(gpu, kv_heads):
    per_sm = decode_tiles(gpu, torch.float16, 64).programs_per_sm
    for batch in range(1, 129):
        splits = num_splits(gpu, per_sm, batch * kv_heads, longest=8192)
        assert filled(gpu, per_sm, batch * kv_heads, splits) >= 0.8, batch
        # No more splits than that takes: each costs a state that is written and read.
        assert all(filled(gpu, per_sm, batch * kv_heads, n) < 0.8 for n in range(1, splits))


def test_a_split_has_at_least_a_tile_of_the_longest_sequence():
    gpu = GPUS["H100"]
    for longest in (0, 1, 2, 7, 16):
        assert 1 <= num_splits(gpu, 4, 12, longest) <= max(1, longest)
    assert num_splits(gpu, 4, 12, longest=16) == 16
    assert num_splits(gpu, 4, 512 * 12, longest=128) == 1


@pytest.mark.parametrize(
    "capability, dtype, head_size, group, message",
    [
        (70, torch.float16, 64, 1, "sm_75 or later, this one is sm_70"),
        (75, torch.bfloat16, 64, 1, "sm_80 or later for dtype bfloat16, this one is sm_75: take float16"),
        (90, torch.bfloat16, 129, 1, "a head size of at most 128 on cuda, the model's is 129"),
        (90, torch.float32, 256, 4, "a head size of at most 128 on cuda, the model's is 256"),
        (80, torch.float16, 64, 17, "at most 16 query heads per K/V head on cuda, the model has 17"),
    ],
)  # fmt: skip
def test_what_the_kernels_do_not_support_is_one_clear_line(
    capability, dtype, head_size, group, message
):
    why = why_not_on(capability, dtype, head_size, group)
    assert isinstance(why, ValueError) and message in str(why) and "\n" not in str(why)


def test_what_the_kernels_support():
    for capability in (75, 80, 86, 89, 90, 100):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            if dtype != torch.bfloat16 or capability >= 80:
                assert why_not_on(capability, dtype, 128, 16) is None
                assert why_not_on(capability, dtype, 1, 1) is None


@pytest.fixture
def t4(monkeypatch):
    """A machine that has a T4, as far as PyTorch says."""
    from types import SimpleNamespace

    properties = SimpleNamespace(major=7, minor=5, multi_processor_count=40)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))


def test_a_t4_computes_in_float16_and_refuses_bfloat16_in_the_kernels(t4):
    pytest.importorskip("triton")
    assert pick_dtype("auto", CUDA) == torch.float16
    why = why_not_fused(CUDA, torch.bfloat16, 16)
    assert isinstance(why, ValueError) and "take float16" in str(why)


def test_the_heads_of_a_model_are_asked_about(t4):
    pytest.importorskip("triton")
    assert "head size of at most 128" in str(why_not_fused(CUDA, torch.float16, 16, head_size=192))
    assert "query heads per K/V head" in str(why_not_fused(CUDA, torch.float16, 16, 64, group=32))
