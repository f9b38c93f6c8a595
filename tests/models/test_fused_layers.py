"""Fused layers on a CPU: each kernel against PyTorch's operators, the same tokens in every engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib import SamplingParams
from lib.attention.full import FullAttention
from lib.core.batch import Batch
from lib.models import compiled
from lib.models.checkpoint import load_model
from lib.models.packed import PackedLinear, pack, pack_linears, why_not_packed
from lib.models.packed_tiles import packed_tiles
from tests.helpers import drain, gpt2_checkpoint, llama_checkpoint, prompt_of

pytest.importorskip("numba")
from lib.models.fused import kernel, ops  # noqa: E402
from lib.models.fused.choose import fuse_layers, why_not_fused_layers  # noqa: E402
from lib.models.fused.layers import FEW_ROWS, FewRowsLinear, LlamaBlock, fuse_blocks  # noqa: E402

CPU = torch.device("cpu")
packs = pytest.mark.skipif(
    why_not_packed(CPU, torch.float32) is not None, reason="PyTorch without oneDNN"
)
DTYPES = [torch.float32, torch.bfloat16]
# Both compute in float32 and round once or twice to the result's type.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2}
CHECKPOINTS = {"llama": llama_checkpoint, "gpt2": gpt2_checkpoint}


def close(got, expected):
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def randn(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 7, 300])
@torch.inference_mode()
def test_each_function_is_pytorchs(dtype, rows):
    d, heads, kv_heads, size = 72, 6, 2, 12

    def tokens(*shape, seed):
        return 3 * randn(rows, *shape, dtype=dtype, seed=seed)

    x, y = tokens(d, seed=1), tokens(d, seed=2)
    weight, bias = randn(d, dtype=dtype, seed=3), randn(d, dtype=dtype, seed=4)
    close(ops.rms_norm(x, weight, 1e-5), compiled.rms_norm(x, weight, 1e-5))
    for got, expected in zip(
        (*ops.add_rms_norm(x, y, weight, 1e-5), *ops.add_layer_norm(x, y, weight, bias, 1e-5)),
        (
            *compiled.add_rms_norm(x, y, weight, 1e-5),
            *compiled.add_layer_norm(x, y, weight, bias, 1e-5),
        ),
        strict=True,
    ):
        close(got, expected)
    close(ops.swiglu(tokens(2 * d, seed=5)), compiled.swiglu(tokens(2 * d, seed=5)))
    qkv = tokens((heads + 2 * kv_heads) * size, seed=6)
    cos, sin = (randn(rows, 1, size // 2, dtype=dtype, seed=s) for s in (7, 8))
    got = ops.split_rotate(qkv, cos, sin, heads, kv_heads)
    expected = compiled.split_rotate(qkv, cos, sin, heads, kv_heads)
    for a, b in zip(got, expected, strict=True):
        # A rotation adds two rounded products of up to 10 in bfloat16.
        torch.testing.assert_close(
            a, b, rtol=TOLERANCE[dtype], atol=0.1 if dtype == torch.bfloat16 else 1e-5
        )


@torch.inference_mode()
def test_large_gates_saturate_and_a_nan_stays_in_its_row():
    gate_up = torch.ones(3, 16)
    gate_up[0, :8] = torch.tensor([-1e30, -200.0, -89.0, -30.0, 30.0, 89.0, 200.0, 1e30])
    gate_up[1, 3] = float("nan")
    out = ops.swiglu(gate_up)
    expected = F.silu(gate_up[:, :8])
    torch.testing.assert_close(out[0, 1:], expected[0, 1:], rtol=2e-6, atol=1e-30)
    assert out[1].isnan().sum() == 1 and out[1, 3].isnan()
    assert torch.equal(out[2], out[2, :1].expand(8))
    x = torch.ones(2, 8)
    x[0, 0] = float("nan")
    normed = ops.rms_norm(x, torch.ones(8), 1e-5)
    assert normed[0].isnan().all() and torch.isfinite(normed[1]).all()


@packs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 64), (100, 70), (61, 49), (960, 576), (130, 17)], ids=str)
def test_a_packed_weight_is_read_where_it_lies_or_not_at_all(dtype, shape):
    if why_not_packed(CPU, dtype):
        pytest.skip("no bfloat16 here")
    weight = randn(*shape, dtype=dtype)
    packed = pack(weight)
    tiles = packed_tiles(packed, weight)
    if tiles is None:
        pytest.skip("oneDNN has another layout on this CPU")
    if dtype == torch.float32:
        rows = torch.from_numpy(tiles.copy())  # [tiles, K, 64]
    else:
        pairs = torch.from_numpy(tiles.copy()).view(torch.bfloat16)  # [tiles, K / 2, 64, 2]
        rows = pairs.transpose(2, 3).flatten(1, 2)
    outputs, inputs = shape
    assert torch.equal(rows.transpose(1, 2).flatten(0, 1)[:outputs, :inputs], weight)
    # Another matrix's memory is not taken for this one's.
    assert packed_tiles(pack(weight + 1), weight) is None


@packs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, "most", "more"])
@torch.inference_mode()
def test_products_of_few_rows(dtype, bias, rows):
    rows = {"most": FEW_ROWS[dtype], "more": FEW_ROWS[dtype] + 1}.get(rows, rows)
    if why_not_packed(CPU, dtype):
        pytest.skip("no bfloat16 here")
    torch.manual_seed(0)
    linear = nn.Linear(70, 227, bias=bias, dtype=dtype)
    packed = PackedLinear(linear)
    if packed.tiles is None:
        pytest.skip("oneDNN has another layout on this CPU")
    x = torch.randn(rows, 140).to(dtype)[:, ::2]  # not contiguous
    close(FewRowsLinear(packed)(x), linear(x))


@packs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shares", [2, 3, 5, 11])
@torch.inference_mode()
def test_threads_divide_a_product_in_half_tiles(dtype, shares):
    """227 outputs are four tiles, eight halves: cuts fall inside tiles, and some shares are empty."""
    if why_not_packed(CPU, dtype):
        pytest.skip("no bfloat16 here")
    torch.manual_seed(0)
    linear = nn.Linear(70, 227, dtype=dtype)
    tiles = PackedLinear(linear).tiles
    if tiles is None:
        pytest.skip("oneDNN has another layout on this CPU")
    x, out = torch.randn(7, 70).to(dtype), torch.empty(7, 227, dtype=dtype)
    bias = ops.floats(linear.bias)
    kernel.few_rows_product(ops.array(x), tiles, bias, ops.array(out), shares)
    close(out, linear(x))


@torch.inference_mode()
def test_layers_on_several_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(ops, "most_threads", lambda: 3)
    monkeypatch.setattr(ops, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr("lib.models.fused.layers.WORTH_THREADS", 0)
    plain, fused = both(tmp_path, "llama", torch.float32)
    for rows in (2, FEW_ROWS[torch.float32] + 1):
        batch = Batch.of_prompts([prompt_of(rows, seed=rows)], CPU)
        got, expected = (m(batch, FullAttention()) for m in (fused, plain))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


def both(tmp_path, family, dtype, **changes):
    """The same random model twice: plain, and packed and fused."""
    CHECKPOINTS[family](tmp_path, **changes)
    plain, fused = (load_model(str(tmp_path), CPU, dtype).model for _ in range(2))
    if not why_not_packed(CPU, dtype):
        pack_linears(fused, "packed")
    assert fuse_blocks(fused) == len(plain.blocks)
    return plain, fused


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.inference_mode()
def test_logits_at_every_number_of_rows(tmp_path, family, dtype):
    changes = {"attention_bias": True, "mlp_bias": True} if family == "llama" else {}
    plain, fused = both(tmp_path, family, dtype, **changes)
    exact = load_model(str(tmp_path), CPU, torch.float32).model
    for rows in [1, 2, 3, 4, 5, FEW_ROWS[dtype], FEW_ROWS[dtype] + 1]:
        batch = Batch.of_prompts([prompt_of(rows, seed=rows)], CPU)
        got, expected, truth = (m(batch, FullAttention()) for m in (fused, plain, exact))
        if dtype == torch.float32:
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
        else:  # not further from float32 than PyTorch's own rounding, with a margin
            scale = truth.abs().max()
            assert (got - truth).abs().max() <= 0.03 * scale
            assert (expected - truth).abs().max() <= 0.03 * scale


@packs
@pytest.mark.parametrize("kv_cache", ["none", "contiguous", "paged"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_same_tokens_with_every_cache(tiny, monkeypatch, name, kv_cache):
    """Batches grow and shrink across FEW_ROWS, so sequences change between both ways of computing."""
    monkeypatch.setattr("lib.models.fused.layers.FEW_ROWS", {torch.float32: 5})
    engine = tiny[name].engine(linear="fused", kv_cache=kv_cache, max_num_batched_tokens=24)
    assert engine.stats()["fused_blocks"] == 2
    work = [(40, 12), (3, 9), (17, 20), (1, 5), *[(2 + i, 4 + i) for i in range(5)]]
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


@packs
def test_one_row_or_many_no_weight_is_kept_twice(tiny):
    packed, fused = (tiny["llama"].engine(linear=x) for x in ("packed", "fused"))
    assert fused.stats()["weight_bytes"] == packed.stats()["weight_bytes"]
    assert fused.stats()["packed_linears"] == packed.stats()["packed_linears"]
    assert packed.stats()["fused_blocks"] == 0


def test_a_layout_that_the_kernel_does_not_know_goes_to_onednn(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.models.packed.packed_tiles", lambda packed, weight: None)
    plain, fused = both(tmp_path, "llama", torch.float32)
    assert type(fused.blocks[0]) is LlamaBlock and not isinstance(fused.lm_head, FewRowsLinear)
    monkeypatch.setattr(
        "lib.models.fused.kernel.few_rows_qkv", None
    )  # would fail if it were called
    batch = Batch.of_prompts([prompt_of(3, seed=1)], CPU)
    with torch.inference_mode():
        torch.testing.assert_close(
            fused(batch, FullAttention()), plain(batch, FullAttention()), rtol=1e-5, atol=1e-4
        )


def test_where_it_cannot_be(llama, monkeypatch):
    assert "not for cuda" in why_not_fused_layers(torch.device("cuda"), torch.float32)
    assert "not for float16" in why_not_fused_layers(CPU, torch.float16)
    half = nn.Sequential(nn.Linear(4, 4, dtype=torch.float16))
    assert fuse_layers(half, "auto") == 0
    with pytest.raises(ValueError, match="linear 'fused' cannot be had.*float16"):
        fuse_layers(half, "fused")
    with pytest.raises(ValueError, match="linear must not be 'fused' where compile is True"):
        llama.engine(linear="fused", compile=True)
    monkeypatch.setitem(__import__("sys").modules, "numba", None)
    assert "pip install numba" in why_not_fused_layers(CPU, torch.float32)


def test_auto_fuses_and_the_other_choices_do_not(llama):
    assert llama.engine(linear="auto").stats()["fused_blocks"] == 2
    assert llama.engine(linear="plain").stats()["fused_blocks"] == 0
    assert np.isfinite(llama.engine().stats()["weight_bytes"])
