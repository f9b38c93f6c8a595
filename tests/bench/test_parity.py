"""The layer-by-layer checker names the first stage that differs; the table of families says what their configs say."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lib.bench import parity
from lib.bench.family_table import DENSE, DIFFERENCES, GEMMA, MIXTURES, _number, family_table
from lib.models.checkpoint import load_model
from lib.models.families import FAMILIES
from tests.families import VARIANTS, hf_variant
from tests.helpers import gpt2_checkpoint, llama_checkpoint

PROMPT = [5, 9, 11, 30, 7, 8, 4, 3, 22, 17, 6, 12]


def checkpoint(name: str, folder):
    if name in ("llama", "gpt2"):
        return {"llama": llama_checkpoint, "gpt2": gpt2_checkpoint}[name](folder, seed=3)
    hf_variant(name, seed=3).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["llama", "gpt2", *VARIANTS])
def test_a_right_port_has_no_difference(tmp_path, name):
    everything = parity.compare_folder(checkpoint(name, tmp_path), PROMPT)
    assert parity.first_difference(everything) is None
    stages = [stage for stage in everything if not stage.skipped]
    config = load_model(tmp_path).config
    # Each layer's two norms, its four products and itself, each with input and output.
    assert len(stages) >= 14 * config.num_layers
    assert {stage.end for stage in stages} == {"input", "output"}
    assert all(stage.size > 0.1 for stage in stages)
    assert f"all {len(stages)} stages agree" in parity.report(everything)
    # The weights of q's and k's norms are all that is read without a call.
    assert len(everything) - len(stages) == (2 * config.num_layers if config.qk_norm else 0)
    compared = {stage.module for stage in stages}
    for layer in range(config.num_layers):
        assert (f"blocks.{layer}.moe.experts" in compared) == config.is_moe(layer)
        assert (f"blocks.{layer}.moe.router" in compared) == config.is_moe(layer)


def broken(tmp_path, name: str, spoil) -> tuple[str, str]:
    """(module of transformers, end) of the first difference once `spoil(model)` has run."""
    checkpoint(name, tmp_path)
    model = load_model(tmp_path).model
    spoil(model)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    first = parity.first_difference(parity.compare_layers(model, reference, PROMPT))
    return first.reference, first.end


@pytest.mark.parametrize(
    "name, spoil, expected",
    [
        (
            "mistral",
            lambda m: setattr(m.blocks[1], "window", None),
            ("layers.1.self_attn.o_proj", "input"),
        ),
        (
            "smollm3",
            lambda m: setattr(m.blocks[1], "rotates", True),
            ("layers.1.self_attn.o_proj", "input"),
        ),
        (
            "llama",
            lambda m: m.cos_table.mul_(1.1),
            ("layers.0.self_attn.o_proj", "input"),
        ),
        (
            "qwen3",
            lambda m: m.blocks[2].q_norm.weight.mul_(1.5),
            ("layers.2.self_attn.o_proj", "input"),
        ),
        (
            "qwen2",
            lambda m: m.blocks[0].qkv.bias.zero_(),
            (
                "layers.0.self_attn.q_proj + k_proj + v_proj",
                "output",
            ),
        ),
        (
            "llama",
            lambda m: setattr(m.blocks[1].mlp_norm, "eps", 0.5),
            ("layers.1.post_attention_layernorm", "output"),
        ),
        (
            "olmo2",
            lambda m: setattr(m.blocks[0], "post_norm", False),
            (
                "layers.0.post_attention_layernorm",
                "input",
            ),
        ),
        (
            "gpt2",
            lambda m: m.blocks[1].fc_out.weight.mul_(2),
            ("h.1.mlp.c_proj", "output"),
        ),
        ("llama", lambda m: m.token_embedding.weight[5].mul_(2), ("embed_tokens", "output")),
        ("gemma", lambda m: m.embedding_scale.mul_(2), ("layers.0", "input")),
        (
            "gemma2",
            lambda m: setattr(m.blocks[1], "softcap", None),
            ("layers.1.self_attn.o_proj", "input"),
        ),
        (
            "gemma3",
            lambda m: setattr(m.blocks[0], "query_scale", 1.0),
            ("layers.0.self_attn.o_proj", "input"),
        ),
        (
            "gemma3",
            lambda m: m.local_cos_table.copy_(m.cos_table),
            ("layers.0.self_attn.o_proj", "input"),
        ),
        (
            "mixtral",
            lambda m: m.blocks[1].moe.router.weight.mul_(2),
            ("layers.1.mlp.gate", "output"),
        ),
        (
            "mixtral",
            lambda m: m.blocks[1].moe.experts[2].down.weight.mul_(2),
            ("layers.1.mlp.experts", "output"),
        ),
        (
            "mixtral",
            lambda m: setattr(m.blocks[0].moe, "normalizes", False),
            ("layers.0.mlp.experts", "output"),
        ),
        (
            "qwen2_moe",
            lambda m: m.blocks[0].moe.shared_gate.weight.zero_(),
            ("layers.0.mlp.shared_expert_gate", "output"),
        ),
        ("llama", lambda m: m.lm_head.weight.mul_(2), ("lm_head", "output")),
    ],
)
def test_the_first_difference_is_where_the_port_is_wrong(tmp_path, name, spoil, expected):
    assert broken(tmp_path, name, spoil) == expected


def test_the_command_exits_with_1_for_a_difference(tmp_path, capsys):
    checkpoint("qwen2", tmp_path)
    assert parity.main([str(tmp_path)]) == 0
    assert "stages agree" in capsys.readouterr().out
    assert parity.main([str(tmp_path), "--tolerance", "0"]) == 1
    assert "first difference: " in capsys.readouterr().out


def test_a_stage_that_was_not_compared_is_said(tmp_path):
    """A layer of transformers that computes its norms without calling their modules, as a fused kernel would."""
    model = load_model(checkpoint("qwen2", tmp_path)).model
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    layer = reference.model.layers[1]
    layer.forward = _without_calling(type(layer.input_layernorm), layer.forward)
    stages = parity.compare_layers(model, reference, PROMPT)
    skipped = [(s.reference, s.end) for s in stages if s.skipped]
    norms = ("layers.1.input_layernorm", "layers.1.post_attention_layernorm")
    assert skipped == [(norm, end) for norm in norms for end in ("input", "output")]
    said = parity.report(stages)
    assert "not compared: transformers does not call this module" in said
    assert said.endswith(f"all {len(stages) - 4} stages agree within 0.0001, 4 were not compared")


def _without_calling(kind, forward):
    def run(*args, **kwargs):
        called, kind.__call__ = kind.__call__, kind.forward
        try:
            return forward(*args, **kwargs)
        finally:
            kind.__call__ = called

    return run


def test_without_stages_the_report_says_so():
    assert parity.report([]) == "no stage was compared"
    stage = parity.Stage("a", "b", "output", skipped="of a reason")
    assert parity.report([stage]).endswith("not compared: of a reason\nno stage was compared")
    assert not stage.differs()


def test_a_nan_is_a_difference():
    stage = parity.Stage("a", "b", "output", float("nan"), 1.0)
    assert stage.differs()


def test_the_table_has_every_family_and_difference():
    rows = family_table()
    assert [row[""] for row in rows] == list(DIFFERENCES.values())
    assert {*DENSE, *GEMMA, *MIXTURES} == {*FAMILIES} - {"gpt2"}
    assert {row[""] for row in family_table(DENSE)} < {row[""] for row in rows}
    assert set(rows[0]) == {"", *FAMILIES} - {"gpt2"}
    by_title = {row[""]: row for row in rows}
    assert by_title["biases of q, k and v"]["qwen2"] == "yes"
    assert by_title["biases of q, k and v"]["llama"] == "no*"
    assert by_title["norms of q and k"]["qwen3"] == "per head"
    assert by_title["norms of q and k"]["olmo2"] == "per projection"
    assert by_title["sliding window, tokens"]["mistral"] == "4,096*"
    assert by_title["sliding window, tokens"]["qwen2"] == "none*"
    assert by_title["layers without RoPE"]["smollm3"] == "9 of 36*"
    assert by_title["embedding times"]["gemma"] == "√3072"
    assert by_title["attention scores times"]["gemma2"] == "1/√256*"
    assert by_title["cap of attention scores"]["gemma2"] == "50*"
    assert by_title["cap of attention scores"]["gemma3_text"] == "none"
    assert by_title["activation of the MLP"]["gemma3_text"] == "gelu_tanh"
    assert by_title["sliding window, tokens"]["gemma3_text"] == "4,096*"
    assert by_title["experts per layer"]["mixtral"] == "8*"
    assert by_title["experts per token"]["qwen3_moe"] == "8*"
    assert by_title["features of a shared expert"]["qwen2_moe"] == "5,632*"
    assert by_title["epsilon of the norms"]["llama"] == "10⁻⁶*"
    assert by_title["RoPE's theta"]["llama"] == "10,000*"
    assert by_title["RoPE's theta"]["smollm3"] == "2,000,000*"
    for row in rows:  # a difference that no family has would not be one
        assert len(set(row.values()) - {row[""]}) > 1, row


@pytest.mark.parametrize(
    "value, text",
    [(1e-6, "10⁻⁶"), (1e-5, "10⁻⁵"), (2.5e-12, "2.5·10⁻¹²"), (2e6, "2,000,000"), (8, "8"), (0.5, "0.5"), (0, "0")],
)  # fmt: skip
def test_numbers_of_the_table_are_read_without_an_e(value, text):
    assert _number(value) == text


def test_a_checkpoint_of_other_weights_is_found(tmp_path):
    """The same comparison from the files' side: one tensor of transformers' copy is changed."""
    checkpoint("mistral", tmp_path / "one")
    other = tmp_path / "two"
    other.mkdir()
    (other / "config.json").write_text((tmp_path / "one" / "config.json").read_text())
    tensors = dict(load_file(tmp_path / "one" / "model.safetensors"))
    tensors["model.layers.1.mlp.down_proj.weight"] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    assert json.loads((other / "config.json").read_text())["model_type"] == "mistral"
    reference = AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32)
    model = load_model(tmp_path / "one").model
    first = parity.first_difference(parity.compare_layers(model, reference, PROMPT))
    assert (first.reference, first.end) == ("layers.1.mlp.down_proj", "output")
