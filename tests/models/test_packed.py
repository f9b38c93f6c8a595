"""Packed linear layers: the same product, the same tokens, no second copy of the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lib import SamplingParams
from lib.models.packed import PACKED_ELEMENTS, PackedLinear, pack_linears, why_not_packed
from tests.helpers import drain, prompt_of

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    why_not_packed(CPU, torch.float32) is not None, reason="PyTorch without oneDNN"
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 3, 17, 200])
@torch.inference_mode()
def test_the_same_product(dtype, bias, tokens):
    if why_not_packed(CPU, dtype):
        pytest.skip("no bfloat16 here")
    torch.manual_seed(0)
    linear = nn.Linear(48, 100, bias=bias, dtype=dtype)
    x = torch.randn(tokens, 96).to(dtype)[:, ::2]  # not contiguous
    expected = linear(x)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(PackedLinear(linear)(x), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("linear", ["packed", "auto"])
def test_the_same_tokens(tiny, name, linear):
    engine = tiny[name].engine(linear=linear, max_num_batched_tokens=24)
    work = [(40, 12), (3, 9), (17, 20)]
    ids = [
        engine.add_request(
            prompt_of(length, seed), SamplingParams(max_tokens=n, temperature=0, ignore_eos=True)
        )
        for seed, (length, n) in enumerate(work)
    ]
    done = drain(engine)
    assert [done[i].token_ids for i in ids] == [
        tiny[name].greedy(prompt_of(length, seed), n) for seed, (length, n) in enumerate(work)
    ]


def test_every_linear_is_replaced_and_the_embedding_stays(tiny):
    plain, packed = tiny["gpt2"].engine().model, tiny["gpt2"].engine(linear="packed").model
    assert not [m for m in packed.modules() if type(m) is nn.Linear]
    linears = [m for m in plain.modules() if type(m) is nn.Linear]
    assert sum(m.weight_bytes for m in packed.modules() if isinstance(m, PackedLinear)) == sum(
        m.weight.nbytes for m in linears
    )
    # What is left as parameters: norms, biases, and the embedding that the head was tied to.
    matrices = {n for n, p in packed.named_parameters() if p.dim() > 1}
    assert matrices == {"token_embedding.weight", "position_embedding.weight"}
    assert torch.equal(packed.token_embedding.weight, plain.token_embedding.weight)


def sizes() -> nn.Module:
    """Three weights: one element short of the bound of 'auto', at it, and far below."""
    side = int(PACKED_ELEMENTS**0.5)
    shapes = ((PACKED_ELEMENTS - 1, 1), (side, side), (8, 16))
    return nn.Sequential(*(nn.Linear(*shape) for shape in shapes)).requires_grad_(False)


def test_auto_packs_large_weights_and_asks_no_clock(monkeypatch):
    """The same layers after every start: a choice by a stopwatch would give a seed another text."""

    def no_clock():
        raise AssertionError("a clock was read")

    for name in ("perf_counter", "perf_counter_ns", "monotonic", "time", "process_time"):
        monkeypatch.setattr(f"time.{name}", no_clock)
    model = sizes()
    assert pack_linears(model, "auto") == 1
    assert [type(m) for m in model] == [nn.Linear, PackedLinear, nn.Linear]


def test_packed_packs_all_and_plain_none():
    assert pack_linears(sizes(), "plain") == 0
    assert pack_linears(sizes(), "packed") == 3


def test_the_record_bears_the_rule_out():
    """lib/models/packed.py names this record as the reason for its rule."""
    path = Path(__file__).parents[2] / "book/measurements/amd-epyc-2core/08_launch_overhead.json"
    columns = json.loads(path.read_text())["measurements"]["products"]["columns"]
    for dtype in ("float32", "bfloat16"):
        plain, packed = columns[f"F.linear, {dtype}"], columns[f"packed, {dtype}"]
        assert columns["batch"][0] == 1 and columns["batch"][-1] == 64
        assert all(fast < slow for fast, slow in zip(packed, plain, strict=True))


def test_stats_say_how_many_layers_are_packed(llama):
    assert llama.engine(linear="plain").stats()["packed_linears"] == 0
    assert llama.engine(linear="auto").stats()["packed_linears"] == 0, "all are small"
    assert llama.engine(linear="packed").stats()["packed_linears"] == 2 * 4 + 1


def test_where_it_cannot_be(llama):
    assert "not for cuda" in why_not_packed(torch.device("cuda"), torch.float32)
    assert "not for float16" in why_not_packed(CPU, torch.float16)
    half = nn.Sequential(nn.Linear(4, 4, dtype=torch.float16))
    assert pack_linears(half, "auto") == 0
    with pytest.raises(ValueError, match="linear 'packed' cannot be had.*float16"):
        pack_linears(half, "packed")
    with pytest.raises(ValueError, match="linear must be one of"):
        llama.engine(linear="fast")
