"""float8 weights: rounding, products against the same arithmetic in float64, devices, and checkpoints that hold them."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib import LLM
from lib.attention.full import FullAttention
from lib.core.batch import Batch
from lib.models.checkpoint import load_model
from lib.models.quantized import fp8
from lib.models.quantized.fp8 import FP8, FP8Matrix, FP8Weight, join, round_fp8, round_rows
from lib.models.quantized.layers import QuantizedLinear
from lib.models.quantized.load import load_prequantized, load_quantized
from lib.models.weight_bytes import weight_bytes
from tests.helpers import gpt2_checkpoint, llama_checkpoint

CPU = torch.device("cpu")


def values_of_e4m3() -> list[float]:
    """All finite values, from the format's definition: sign, 4 bits of exponent (bias 7), 3 of mantissa."""
    positive = [m * 2**-9 for m in range(8)]
    positive += [(8 + m) * 2.0 ** (e - 10) for e in range(1, 16) for m in range(8)]
    positive = positive[:-1]  # the largest code is NaN
    return sorted({-x for x in positive} | set(positive))


def test_the_format_has_the_values_of_its_definition():
    codes = torch.arange(256).to(torch.uint8).view(FP8).float()
    assert sorted(set(codes[codes.isfinite()].tolist())) == values_of_e4m3()
    assert fp8.LARGEST == 448 == max(values_of_e4m3())


def test_every_element_is_rounded_to_the_nearest_value():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 64, generator=generator) * torch.logspace(-6, 6, 20)[:, None]
    codes, scale = round_rows(x)
    torch.testing.assert_close(scale[:, 0], x.abs().amax(1) / 448)
    grid = torch.tensor(values_of_e4m3())
    nearest = (x / scale)[..., None].sub(grid).abs().amin(-1)
    torch.testing.assert_close((x / scale - codes.float()).abs(), nearest)
    error = (codes.float() * scale - x).abs()
    assert (error <= torch.maximum(x.abs() / 16, scale * 2**-10) * (1 + 1e-5)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_of_zeros_tiny_numbers_and_what_is_not_finite(dtype):
    x = torch.ones(5, 32, dtype=dtype)
    x[0], x[1] = 0.0, torch.finfo(dtype).smallest_normal
    x[2, 3], x[3, 4], x[4, 5] = float("nan"), float("inf"), -float("inf")
    codes, scale = round_rows(x)
    assert (codes[0].float() == 0).all()
    values = codes[1].float() * scale[1]
    assert ((values - x[1].float()).abs() <= x[1].float() / 8).all()
    y = FP8Weight(round_fp8(torch.ones(16, 32)))(x)
    assert y[:2].isfinite().all() and y[2:].isnan().all(), "a broken row must be seen, and only it"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows, inputs", [(16, 64), (37, 100), (5, 7)])
def test_the_product_is_that_of_the_rounded_factors(dtype, rows, inputs):
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, inputs, generator=generator)
    matrix = round_fp8(weight)
    layer = FP8Weight(matrix)
    assert layer.codes.shape[0] % 16 == 0 and layer.codes.shape[1] % 16 == 0
    bound = 1e-5 if dtype != torch.bfloat16 else 2**-8  # the output's rounding
    for tokens in (1, 2, 17):
        x = torch.randn(tokens, inputs, generator=generator).to(dtype)
        codes, scale = round_rows(x)
        exact = (codes.double() * scale.double()) @ matrix.dequantize().double().T
        y = layer(x)
        assert y.shape == (tokens, rows)
        assert (y.double() - exact).abs().max() <= bound * exact.abs().max()
        alone = torch.cat([layer(row[None]) for row in x])
        assert (alone.double() - y.double()).abs().max() <= bound * exact.abs().max()


def test_a_device_without_scales_by_row_computes_the_same():
    """Ada: the scales are applied to the float32 result of the codes' product."""
    x, matrix = torch.randn(3, 64).bfloat16(), round_fp8(torch.randn(48, 64))
    by_row = FP8Weight(matrix)(x)
    with patch.object(fp8, "scales_by_row", lambda device: False):
        after = FP8Weight(matrix)(x)
    assert by_row.dtype == torch.bfloat16 and after.dtype == torch.float32
    assert (by_row.float() - after).abs().max() <= 2**-8 * after.abs().max()


def test_the_error_is_within_a_sixteenth_of_each_factor():
    """|xw - x'w'| <= sum |x||w| (1/16 + 1/16 + 1/256), and what lies below the normal numbers."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(8, 256, generator=generator), torch.randn(64, 256, generator=generator)
    y = FP8Weight(round_fp8(w))(x)
    bound = (x.abs() @ w.abs().T) * (2 / 16 + 1 / 256)
    below = 256 * 2**-10 * 2 * x.abs().amax() * w.abs().amax() / 448
    error = (y - x @ w.T).abs()
    assert (error <= bound + below).all() and error.max() > 0


def test_a_layer_of_several_matrices_and_floats():
    parts = [torch.randn(n, 48) for n in (32, 16, 16)]
    bias = torch.randn(64)
    layer = QuantizedLinear([*map(round_fp8, parts[:2]), parts[2]], bias, 48, "float32", torch.float32)  # fmt: skip
    assert [type(part).__name__ for part in layer.parts] == ["FP8Weight", "_FloatWeight"]
    x = torch.randn(3, 48)
    expected = torch.cat([FP8Weight(round_fp8(p))(x) for p in parts[:2]] + [x @ parts[2].T], 1)
    torch.testing.assert_close(layer(x), expected + bias)
    whole = join([round_fp8(p) for p in parts[:2]])
    assert torch.equal(
        whole.dequantize(), torch.cat([round_fp8(p).dequantize() for p in parts[:2]])
    )


@pytest.mark.parametrize(
    "codes, scale, message",
    [
        (torch.zeros(2, 4), torch.ones(2), "codes must be .* got .* torch.float32"),
        (torch.zeros(2, 4).to(FP8), torch.ones(3), r"scale must be \[2\] .* got \[3\]"),
        (torch.zeros(2, 4).to(FP8), torch.ones(2).half(), "scale must be .* torch.float16"),
    ],
)
def test_a_matrix_of_other_types_or_shapes_is_refused(codes, scale, message):
    with pytest.raises(ValueError, match=message):
        FP8Matrix(codes, scale)


# Loading.


@torch.inference_mode()
def logits(model) -> Tensor:
    return model(Batch.of_prompts([[5, 9, 11, 30], [7]]), FullAttention())


@pytest.mark.parametrize("make", [llama_checkpoint, gpt2_checkpoint])
def test_a_float_checkpoint_is_rounded_and_no_float_copy_is_kept(tmp_path, make):
    folder = make(tmp_path, seed=1)
    model = load_quantized(folder, "fp8", "float32", CPU, torch.float32).model
    exact = load_model(folder).model
    layers = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    outputs = sum(layer.out_features for layer in layers)
    padded = sum(p.codes.nbytes + p.scale.nbytes for layer in layers for p in layer.parts)
    floats = sum(p.nbytes for p in model.parameters())
    assert padded + floats == weight_bytes(model) < 0.6 * weight_bytes(exact)
    biases = sum(p.nbytes for layer in layers for p in layer.parameters())
    ends = exact.token_embedding.weight.nbytes
    if not exact.config.tie_word_embeddings:
        ends += exact.lm_head.weight.nbytes
    vectors = sum(p.nbytes for name, p in exact.named_parameters() if p.dim() == 1 or "position" in name)  # fmt: skip
    assert floats <= ends + vectors and biases <= 4 * outputs
    ours, theirs = logits(model), logits(exact)
    error = (ours - theirs).norm() / theirs.norm()
    assert 0.001 < error < 0.2, "rounded, and no worse than 4 bits of mantissa are"


def checkpoint(folder: Path, settings: dict, scale_name="weight_scale", per="channel", change=None) -> Path:  # fmt: skip
    """A tiny Llama whose linear layers are float8, but the head, with the given quantization_config."""
    llama_checkpoint(folder, seed=3)
    tensors = load_file(folder / "model.safetensors")
    for name in [n for n in tensors if "proj.weight" in n]:
        matrix = round_fp8(tensors[name])
        scale = matrix.scale[:, None].to(torch.bfloat16)
        codes = (tensors[name] / scale.float()).to(FP8)
        if per == "tensor":
            scale = (tensors[name].abs().max() / 448).float()
            codes = (tensors[name] / scale).to(FP8)
        tensors[name] = codes
        tensors[name.replace("weight", scale_name)] = scale
    if change is not None:
        change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return folder


def compressed(**changes) -> dict:
    """What llm-compressor writes for the scheme FP8_DYNAMIC."""
    common = {"num_bits": 8, "type": "float", "symmetric": True, "group_size": None}
    group = {
        "weights": {**common, "strategy": "channel", "dynamic": False},
        "input_activations": {**common, "strategy": "token", "dynamic": True},
        "output_activations": None,
        "targets": ["Linear"],
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        **changes,
    }


AUTO_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
WRITERS = {
    "llm-compressor": dict(settings=compressed()),
    "llm-compressor, tensor": dict(settings=compressed(), per="tensor"),
    "AutoFP8": dict(settings=AUTO_FP8, per="tensor"),
    "transformers": dict(settings={**AUTO_FP8, "weight_block_size": None}, per="tensor", scale_name="weight_scale_inv"),
}  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS)
def test_a_checkpoint_is_read_exactly(tmp_path, writer):
    folder = checkpoint(tmp_path, **WRITERS[writer])
    tensors = load_file(folder / "model.safetensors")
    model = load_prequantized(folder, "float32", CPU, torch.float32).model
    found = 0
    for path, names in model.checkpoint_names().items():
        module = model.get_submodule(path)
        if not isinstance(module, QuantizedLinear):
            continue
        (part,) = module.parts
        ours = part.codes.float()[: part.out_features, : part.in_features]
        scale = part.scale[: part.out_features, None]
        expected = torch.cat(
            [
                tensors[f"model.{name}.weight"].float()
                * next(
                    tensors[key].float()
                    for key in (f"model.{name}.weight_scale", f"model.{name}.weight_scale_inv")
                    if key in tensors
                )
                for name in names
            ]
        )
        assert torch.equal(ours * scale, expected), path
        found += len(names)
    assert found == 2 * 7
    assert torch.equal(model.lm_head.weight, tensors["lm_head.weight"])
    engine = LLM(folder, device="cpu", num_blocks=9, attention="gather", dtype="bfloat16")
    assert len(engine.generate([[5, 6, 7]])[0].token_ids) > 0
    with pytest.raises(ValueError, match="quantized_activations must be 'float32' with the FP8"):
        load_prequantized(folder, "int8", CPU, torch.float32)


def group(part: str, **changes) -> dict:
    settings = compressed()
    values = settings["config_groups"]["group_0"]
    values[part] = {**values[part], **changes} if changes else None
    return settings


def without_scale(tensors: dict[str, Tensor]) -> None:
    del tensors["model.layers.0.mlp.up_proj.weight_scale"]


def block_scale(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.mlp.up_proj.weight_scale"] = torch.ones(1, 2)


def static_scale(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.mlp.up_proj.input_scale"] = torch.ones(())


def float8_head(tensors: dict[str, Tensor]) -> None:
    matrix = round_fp8(tensors["lm_head.weight"])
    tensors |= {"lm_head.weight": matrix.codes, "lm_head.weight_scale": matrix.scale}


@pytest.mark.parametrize(
    "settings, change, message",
    [
        ({**AUTO_FP8, "activation_scheme": "static"}, None, r"activation_scheme must be one of \['dynamic'\], got 'static'"),
        ({**AUTO_FP8, "weight_block_size": [128, 128]}, None, r"weight_block_size must be one of \[None\], got \[128, 128\]"),
        ({**AUTO_FP8, "fmt": "e5m2"}, None, "fmt must be one of .* got 'e5m2'"),
        ({**AUTO_FP8, "scale_fmt": "ue8m0"}, None, "scale_fmt must be one of .* got 'ue8m0'"),
        ({"quant_method": "fbgemm_fp8"}, None, r"quant_method must be one of \['gptq', 'awq', 'fp8', 'compressed-tensors'\], got 'fbgemm_fp8'"),
        (compressed(format="pack-quantized"), None, "format must be one of .*float-quantized.* got 'pack-quantized'"),
        (compressed(kv_cache_scheme={"num_bits": 8}), None, "kv_cache_scheme must be one of"),
        (compressed(sparsity_config={"format": "sparse-24"}), None, "sparsity_config.format must be .*'sparse-24'"),
        (compressed(config_groups={}), None, "config_groups must be an object with at least one group"),
        (compressed(config_groups={"FP8": ["Linear"]}), None, r"config_groups.FP8 must be an object, got \['Linear'\]"),
        (group("weights", num_bits=4), None, "config_groups.group_0.weights.num_bits must be .* got 4"),
        (group("weights", type="int"), None, "weights.type must be one of .* got 'int'"),
        (group("weights", strategy="block"), None, "weights.strategy must be one of .* got 'block'"),
        (group("input_activations", dynamic=False), None, "input_activations.dynamic must be one of .* got False"),
        (group("input_activations"), None, "input_activations.num_bits must be one of .* got None"),
        (AUTO_FP8, without_scale, "missing: layers.0.mlp.up_proj.weight_scale"),
        (AUTO_FP8, block_scale, r"misshapen: layers.0.mlp.up_proj.weight_scale is \[1, 2\]"),
        (AUTO_FP8, static_scale, "unexpected: layers.0.mlp.up_proj.input_scale"),
        (AUTO_FP8, float8_head, "lm_head.weight must not be torch.float8_e4m3fn"),
    ],
)  # fmt: skip
def test_what_is_not_implemented_or_broken_is_named(tmp_path, settings, change, message):
    folder = checkpoint(tmp_path, settings, change=change)
    with pytest.raises(ValueError, match=message):
        load_prequantized(folder, "float32", CPU, torch.float32)
