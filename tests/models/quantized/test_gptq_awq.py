"""Fake GPTQ and AWQ checkpoints, packed here from known integers: what loads, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib import LLM, SamplingParams
from lib.attention.full import FullAttention
from lib.core.batch import Batch
from lib.models.checkpoint import QuantizedCheckpoint, load_model
from lib.models.quantized.load import load_prequantized
from tests.helpers import gpt2_checkpoint, llama_checkpoint, prompt_of

CPU = torch.device("cpu")
SIZES = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=61)  # fmt: skip
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # AutoAWQ, awq/modules/linear/gemm.py, order_map


def pack_rows(values: Tensor, bits: int) -> Tensor:
    """AutoGPTQ, QuantLinear.pack: row i of the result holds rows i * 32 / bits + j, at bits j * bits."""
    per = 32 // bits
    out = torch.zeros(values.shape[0] // per, values.shape[1], dtype=torch.int64)
    for j in range(per):
        out |= values[j::per].long() << (bits * j)
    return (out - ((out >> 31) << 32)).to(torch.int32)


def pack_columns(values: Tensor, bits: int, order: list[int]) -> Tensor:
    per = 32 // bits
    out = torch.zeros(values.shape[0], values.shape[1] // per, dtype=torch.int64)
    for j in range(per):
        out |= values[:, order[j] :: per].long() << (bits * j)
    return (out - ((out >> 31) << 32)).to(torch.int32)


def quantise(name: str, weight: Tensor, settings: dict, seed: int) -> tuple[Tensor, dict]:
    """Random integers for a layer [out, in]: (the float weight that they mean, the packed tensors)."""
    bits, inputs, outputs = settings["bits"], weight.shape[1], weight.shape[0]
    size = inputs if settings["group_size"] == -1 else settings["group_size"]
    groups, g = inputs // size, torch.Generator().manual_seed(seed)
    q = torch.randint(0, 2**bits, (inputs, outputs), generator=g)
    low, high = (1, 2**bits) if settings.get("sym") is False else (2 ** (bits - 1),) * 2
    zeros = torch.randint(low, high + 1, (groups, outputs), generator=g).clamp(max=2**bits - 1)
    scales = ((torch.rand(groups, outputs, generator=g) + 0.5) / 2**bits / 4).half()
    index = torch.arange(inputs) // size
    dequantised = scales.float()[index] * (q - zeros[index]).float()
    if settings["quant_method"] == "awq":
        packed = {
            "qweight": pack_columns(q, 4, AWQ_ORDER),
            "qzeros": pack_columns(zeros, 4, AWQ_ORDER),
        }
    else:
        stored = zeros if settings.get("checkpoint_format") == "gptq_v2" else zeros - 1
        packed = {
            "qweight": pack_rows(q, bits),
            "qzeros": pack_columns(stored, bits, list(range(32 // bits))),
            "g_idx": index.to(torch.int32),
        }
    packed["scales"] = scales
    return dequantised.T.contiguous(), {f"{name}.{part}": t for part, t in packed.items()}


def checkpoints(folder: Path, family="llama", change=None, **settings) -> tuple[Path, Path]:
    """(float folder, quantised folder) of the same weights. `change(tensors)` edits the quantised one."""
    settings = {"bits": 4, "group_size": 32, **settings}
    make = {"llama": llama_checkpoint, "gpt2": gpt2_checkpoint}[family]
    sizes = SIZES if family == "llama" else dict(n_embd=96)
    floats, packed = (make(folder / kind, seed=3, **sizes) for kind in ("float", "packed"))
    tensors = load_file(floats / "model.safetensors")
    quantised = dict(tensors)
    for seed, name in enumerate(sorted(tensors)):
        base, transposed = name.removesuffix(".weight"), ".c_" in name
        if not name.endswith("weight") or not (transposed or "proj" in name):
            continue
        weight = tensors[name].T if transposed else tensors[name]
        value, parts = quantise(base, weight, settings, seed)
        tensors[name] = value.T.contiguous() if transposed else value
        del quantised[name]
        quantised |= parts
    if change is not None:
        change(quantised)
    for target, values in ((floats, tensors), (packed, quantised)):
        save_file(values, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return floats, packed


@torch.inference_mode()
def logits(model) -> Tensor:
    return model(Batch.of_prompts([[5, 9, 11, 30], [7]]), FullAttention())


def load(folder: Path):
    return load_prequantized(folder, "float32", CPU, torch.float32).model


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "settings",
    [
        dict(quant_method="gptq"),
        dict(quant_method="gptq", sym=False),
        dict(quant_method="gptq", sym=False, checkpoint_format="gptq_v2"),
        dict(quant_method="gptq", bits=8),
        dict(quant_method="gptq", bits=8, sym=False),
        dict(quant_method="gptq", group_size=-1, sym=False),
        dict(quant_method="awq", sym=False),
        dict(quant_method="awq", version="gemm", zero_point=True),
    ],
    ids=["gptq", "gptq-zeros", "gptq-v2", "gptq-8", "gptq-8-zeros", "gptq-channels", "awq-zeros", "awq"],
)  # fmt: skip
def test_the_logits_are_those_of_the_dequantised_checkpoint(tmp_path, family, settings):
    floats, packed = checkpoints(tmp_path, family, **settings)
    exact, ours = logits(load_model(floats).model), logits(load(packed))
    assert (ours - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_larger_groups(tmp_path):
    floats, packed = checkpoints(tmp_path, quant_method="gptq", group_size=64, sym=False)
    assert (logits(load(packed)) - logits(load_model(floats).model)).abs().max() < 1e-4


@pytest.mark.parametrize("method, right", [("gptq", "gptq"), ("gptq", "gptq_v2")])
def test_a_zero_point_off_by_one_would_be_seen(tmp_path, method, right):
    """The same file read as the other format: each weight is off by one scale."""
    floats, packed = checkpoints(tmp_path, quant_method=method, sym=False, checkpoint_format=right)
    config = json.loads((packed / "config.json").read_text())
    wrong = {"gptq": "gptq_v2", "gptq_v2": "gptq"}[right]
    config["quantization_config"]["checkpoint_format"] = wrong
    (packed / "config.json").write_text(json.dumps(config))
    assert (logits(load(packed)) - logits(load_model(floats).model)).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scales_keep_the_precision_of_the_checkpoint(tmp_path, dtype):
    """Scales of about 1e-8 are below the normal numbers of float16, which would lose most of their bits."""

    def smaller(tensors):
        for name in tensors:
            if name.endswith(".scales"):
                tensors[name] = (tensors[name].float() * 3e-7).to(dtype)

    _, packed = checkpoints(tmp_path, change=smaller, quant_method="gptq")
    tensors = load_file(packed / "model.safetensors")
    model = load(packed)
    (path,) = (
        path
        for path, names in model.checkpoint_names().items()
        if "layers.0.mlp.down_proj" in names
    )
    linear = model.get_submodule(path)
    scales = tensors["model.layers.0.mlp.down_proj.scales"].float()
    x = torch.eye(linear.in_features)[:1] * 1e6
    ours = linear(x)[0]
    codes = tensors["model.layers.0.mlp.down_proj.qweight"][0] & 15
    expected = 1e6 * scales[0] * (codes - 8)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_the_engine_finds_the_method_in_config_json(tmp_path):
    floats, packed = checkpoints(tmp_path, quant_method="awq", sym=False)
    options = dict(device="cpu", num_blocks=17, attention="gather")
    prompts = [prompt_of(n, n) for n in (4, 11)]
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    answers = [
        [o.token_ids for o in LLM(folder, **options).generate(prompts, params)]
        for folder in (floats, packed)
    ]
    assert answers[0] == answers[1]
    with pytest.raises(QuantizedCheckpoint, match="is quantised already, by 'awq'"):
        load_model(packed)
    with pytest.raises(ValueError, match="quantization must be None .* 'awq', got 'int8'"):
        LLM(packed, **options, quantization="int8")


def test_a_bias_of_zeros_that_autogptq_adds_is_dropped(tmp_path):
    def add(tensors, value=0.0):
        tensors["model.layers.0.mlp.up_proj.bias"] = torch.full((128,), value)

    floats, packed = checkpoints(tmp_path / "a", change=add, quant_method="gptq")
    assert (logits(load(packed)) - logits(load_model(floats).model)).abs().max() < 1e-4
    _, packed = checkpoints(tmp_path / "b", change=lambda t: add(t, 1.0), quant_method="gptq")
    with pytest.raises(ValueError, match="unexpected: layers.0.mlp.up_proj.bias"):
        load(packed)


LAYER = "model.layers.1.mlp.down_proj"


def drop(part: str):
    return lambda tensors: tensors.pop(f"{LAYER}.{part}")


def replace(part: str, change):
    def edit(tensors):
        tensors[f"{LAYER}.{part}"] = change(tensors[f"{LAYER}.{part}"]).contiguous()

    return edit


@pytest.mark.parametrize(
    "settings, change, message",
    [
        (dict(bits=3), None, r"quantization_config.bits must be one of \[4, 8\], got 3"),
        (dict(quant_method="awq", bits=8), None, r"bits must be one of \[4\], got 8"),
        (dict(quant_method="hqq"), None, "quant_method must be one of .*got 'hqq'"),
        (dict(checkpoint_format="marlin"), None, "checkpoint_format must be one of .*'marlin'"),
        (dict(quant_method="awq", version="gemv"), None, "version must be one of .*'gemv'"),
        (dict(quant_method="awq", zero_point=False), None, "zero_point must be one of .*False"),
        (dict(group_size=0), None, "group_size must be -1 or an integer >= 1, got 0"),
        (dict(group_size=48), None, "128 inputs .* divisible by the group size 48"),
        (dict(group_size=16), None, "divisible by the group size 16, that by 32"),
        ({}, drop("scales"), r"missing: layers.1.mlp.down_proj.scales"),
        ({}, drop("qweight"), r"missing: layers.1.mlp.down_proj.weight.*unexpected"),
        ({}, replace("qzeros", lambda t: t[:1]), r"misshapen: layers.1.mlp.down_proj.qzeros"),
        ({}, replace("g_idx", lambda t: t.flip(0)), r"layers.1.mlp.down_proj.g_idx reorders .*desc_act"),
        ({}, lambda t: t.update({f"{LAYER}.weight": torch.zeros(64, 128)}), "unexpected: .*down_proj.weight"),
    ],
)  # fmt: skip
def test_what_is_not_implemented_or_broken_is_named(tmp_path, settings, change, message):
    made = {"quant_method": "gptq"}
    _, packed = checkpoints(tmp_path, change=change, **made)
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"].update(settings)
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load(packed)
