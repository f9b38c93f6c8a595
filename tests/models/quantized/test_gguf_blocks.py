"""A GGUF file's own blocks: the logits of the dequantised model, no float copy, and refusals that name the tensor."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from lib.attention.full import FullAttention
from lib.core.batch import Batch
from lib.models.checkpoint import load_model
from lib.models.quantized.gguf_blocks import read_blocks
from lib.models.quantized.load import load_quantized
from tests.models.quantized.files import write

CPU = torch.device("cpu")
PROMPTS = [[5, 9, 11, 30, 4, 8], [7], list(range(3, 40))]
MIXED = {"token_embd": "Q8_0", "attn_v": "Q8_0", "blk.1.ffn_down": "Q4_0", "blk.0.attn_output": "F16",
         "blk.1.attn_q": "F32"}  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def load(file, activations="float32", dtype=torch.float32):
    return load_quantized(file, "gguf", activations, CPU, dtype)


@torch.inference_mode()
def logits(model):
    return model(Batch.of_prompts(PROMPTS), FullAttention())


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_codes_and_scales_are_the_file_s(kind):
    """Against the gguf package's own dequantisation, bit for bit up to one rounding."""
    values = np.random.default_rng(0).normal(size=(24, 96)).astype(np.float32)
    kind_id = GGMLQuantizationType[kind]
    data = gguf.quants.quantize(values, kind_id)
    ours = read_blocks(data, kind).dequantize().numpy()
    np.testing.assert_allclose(ours, gguf.quants.dequantize(data, kind_id), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "kinds, default",
    [({}, "Q4_1"), ({}, "Q4_0"), ({}, "Q8_0"), (MIXED, "Q4_1"), ({}, "F32"), ({}, "BF16")],
    ids=["Q4_1", "Q4_0", "Q8_0", "mixed", "F32", "BF16"],
)
@pytest.mark.parametrize("tied", [True, False])
def test_the_logits_are_those_of_the_dequantised_model(tmp_path, kinds, default, tied):
    file = write(tmp_path / "tiny.gguf", kinds, default, tie_word_embeddings=tied)
    exact, ours = logits(load_model(file).model), logits(load(file).model)
    assert (ours - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_biases_come_along(tmp_path):
    file = write(tmp_path / "b.gguf", {}, attention_bias=True, mlp_bias=True)
    exact, ours = logits(load_model(file).model), logits(load(file).model)
    assert (ours - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_no_float_copy_of_the_weights(tmp_path):
    """What the model holds: 5 bits per weight in the file's order of magnitude, vectors, RoPE's tables."""
    file = write(tmp_path / "tiny.gguf", {"token_embd": "Q8_0"}, tie_word_embeddings=True)
    model = load(file).model
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in [*model.parameters(), *model.buffers()]}  # fmt: skip
    for module in model.modules():
        for value in vars(module).values():
            assert not isinstance(value, torch.Tensor), "a tensor beside parameters and buffers"
    layer = (96 * 96 * 2 + 32 * 96 * 2 + 3 * 96 * 160) * 20 // 32
    embedding = 64 * 96 * 34 // 32  # 61 rows, padded to four tiles of 16
    vectors, tables = 5 * 96 * 4, 2 * 512 * 8 * 4
    assert sum(held.values()) == 2 * layer + embedding + vectors + tables
    assert not file.with_suffix(".safetensors").exists()


def test_nothing_as_large_as_the_weights_is_written_to_disk(tmp_path):
    load(write(tmp_path / "tiny.gguf", {}))
    assert [f.name for f in (tmp_path / "home").rglob("*.safetensors")] == []


@pytest.mark.parametrize(
    "kinds, config, message",
    [
        ({"blk.1.ffn_down": "Q4_K"}, dict(intermediate_size=256),
         r"tiny.gguf: the tensor blk.1.ffn_down.weight is of type Q4_K, .*must be one of .*'Q4_1'"),
        ({"blk.0.attn_v": "Q5_1"}, {}, "the tensor blk.0.attn_v.weight is of type Q5_1"),
        ({"token_embd": "Q5_0"}, {}, "the tensor token_embd.weight is of type Q5_0"),
        ({"blk.0.attn_norm": "Q8_0"}, {}, r"the tensor blk.0.attn_norm.weight is of type Q8_0, .*\['F32', 'F16', 'BF16'\]"),
    ],
)  # fmt: skip
def test_other_types_are_refused_by_name(tmp_path, kinds, config, message):
    file = write(tmp_path / "tiny.gguf", kinds, **config)
    with pytest.raises(ValueError, match=message):
        load(file)


def test_missing_tensors_are_named(tmp_path):
    file = write(tmp_path / "tiny.gguf", {}, drop="blk.1.ffn_gate")
    with pytest.raises(
        ValueError, match="tiny.gguf: missing tensors: layers.1.mlp.gate_proj.weight"
    ):
        load(file)


def test_a_truncated_file_is_named(tmp_path):
    file = write(tmp_path / "tiny.gguf", {})
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="tiny.gguf is not a readable GGUF file"):
        load(file)


def test_what_is_no_gguf_file(tmp_path):
    for name in ("gpt2", tmp_path):
        with pytest.raises(
            ValueError, match="quantization 'gguf' needs .*'smollm2' or a .gguf file"
        ):
            load(name)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load(tmp_path / "absent.gguf")
    with pytest.raises(ValueError, match="quantized_activations must be 'float32' on cuda"):
        load_quantized("smollm2", "gguf", "int8", torch.device("cuda"), torch.float32)
