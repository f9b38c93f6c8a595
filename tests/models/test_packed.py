"""Packed linear layers: the same product, the same tokens, no second copy of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lib import SamplingParams
from lib.models import packed as module
from lib.models.packed import PackedLinear, pack_linears, runs_faster, why_not_packed
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


def test_auto_packs_what_runs_faster(monkeypatch):
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 16)).requires_grad_(
        False
    )
    asked = []
    assert pack_linears(model, "auto") == 0, "small weights are not worth a measurement"
    monkeypatch.setattr(module, "_LEAST", 1)
    monkeypatch.setattr(
        module,
        "runs_faster",
        lambda linear: asked.append(linear.in_features) or linear.in_features == 8,
    )
    assert pack_linears(model, "auto") == 2
    assert asked == [8, 16], "one measurement a shape"
    assert [type(m) for m in model] == [PackedLinear, nn.Linear, PackedLinear]
    assert pack_linears(model, "plain") == 0


def test_the_measurement_follows_the_clock(monkeypatch):
    linear = nn.Linear(8, 8)
    monkeypatch.setattr(module, "_fastest", lambda plain, packed: [2.0, 1.0])
    assert runs_faster(linear)
    monkeypatch.setattr(module, "_fastest", lambda plain, packed: [1.0, 1.0])
    assert not runs_faster(linear)


def test_where_it_cannot_be(llama):
    assert "not for cuda" in why_not_packed(torch.device("cuda"), torch.float32)
    assert "not for float16" in why_not_packed(CPU, torch.float16)
    half = nn.Sequential(nn.Linear(4, 4, dtype=torch.float16))
    assert pack_linears(half, "auto") == 0
    with pytest.raises(ValueError, match="linear 'packed' cannot be had.*float16"):
        pack_linears(half, "packed")
    with pytest.raises(ValueError, match="linear must be one of"):
        llama.engine(linear="fast")
