"""Every key of a supported family's config is classified, and means what it means in transformers."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from lib.bench.measure.counts import parameters
from lib.models.checkpoint import load_model
from lib.models.config import load_config
from lib.models.families import FAMILIES, NEUTRAL, NO_EFFECT
from lib.models.llama import rope_frequencies
from lib.models.moe_config import MOE_FAMILIES
from tests.families import BASE, VARIANTS, config_class, hf_variant

LLAMAS = [family for family in FAMILIES if family != "gpt2"]
SIZES = {key: value for key, value in BASE.items() if not key.endswith("_token_id")}
# Fields of later families, and transformers' name of each; None and 0 mean the same here.
SAME = {
    "num_experts": "num_experts",
    "num_experts_per_tok": "num_experts_per_tok",
    "shared_expert_size": "shared_expert_intermediate_size",
}
GPT2_SIZES = dict(vocab_size=61, n_embd=48, n_head=3, n_layer=2, n_positions=64)


def write(folder: Path, family: str, **changes) -> Path:
    sizes = GPT2_SIZES if family == "gpt2" else SIZES
    config = {"model_type": family, **sizes, **changes}
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if value is not ...})
    )
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_of_transformers_config_class_is_classified(family):
    """A field that a new release adds makes this fail until the table says what becomes of it."""
    unknown = [
        f.name for f in fields(config_class(family)) if FAMILIES[family].effect(f.name) is None
    ]
    assert unknown == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_key_has_one_class(family):
    entry = FAMILIES[family]
    assert not NO_EFFECT & set(entry.read) and not NO_EFFECT & {*NEUTRAL, *entry.neutral}
    assert not set(entry.read) & set(entry.neutral)
    assert set(entry.defaults) <= set(entry.read) | {"tie_word_embeddings"}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unclassified_key_would_be_seen(family):
    assert FAMILIES[family].effect("a_field_of_the_future") is None


@pytest.mark.parametrize("family", FAMILIES)
def test_the_defaults_of_transformers_are_neutral(family):
    """A config.json with nothing but sizes is complete in transformers, so it must load here."""
    entry, default = FAMILIES[family], config_class(family)().to_dict()
    for key, allowed in {**NEUTRAL, **entry.neutral}.items():
        if key not in entry.read and key in default:
            assert default[key] in allowed, key


@pytest.mark.parametrize("family", LLAMAS)
@pytest.mark.parametrize("written", ["sizes", "some", "nulls"])
def test_missing_keys_mean_what_they_mean_in_transformers(tmp_path, family, written):
    changes = {}
    if written != "sizes":
        changes = {"num_key_value_heads": ..., "num_attention_heads": 32, "hidden_size": 320}
    if written == "nulls":
        changes |= {"sliding_window": None, "rope_scaling": None, "layer_types": None}
        # There transformers' class wants a number.
        if family not in ("mistral", "gemma", "gemma2", "gemma3_text", *MOE_FAMILIES):
            changes["num_key_value_heads"] = None
        if family in ("gemma2", "gemma3_text"):  # whose layers slide, so that it needs a window
            del changes["sliding_window"]
    folder = write(tmp_path, family, **changes)
    ours, theirs = load_config(folder), config_class(family).from_pretrained(folder)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    heads = theirs.num_attention_heads
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or theirs.hidden_size // heads)
    assert ours.norm_eps == theirs.rms_norm_eps
    rope = theirs.rope_parameters
    if family == "gemma3_text":
        assert ours.local_rope_theta == rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    assert ours.rope_theta == rope["rope_theta"]
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.output_bias == getattr(theirs, "attention_bias", False)
    assert ours.mlp_bias == getattr(theirs, "mlp_bias", False)
    windows = family in ("mistral", "mixtral") or (family == "gemma3_text" and ours.num_layers < 6)
    assert ours.sliding_window == (theirs.sliding_window if windows else None)
    for ours_too, key in SAME.items():
        assert getattr(ours, ours_too) == (getattr(theirs, key, None) or 0)
    assert ours.attention_bias == getattr(theirs, "qkv_bias", ours.attention_bias)
    rope = getattr(theirs, "no_rope_layers", [1] * theirs.num_hidden_layers)
    assert list(ours.rope_layers or [True] * ours.num_layers) == [bool(x) for x in rope]


def test_gemma3_reads_the_ropes_that_transformers_5_15_writes(tmp_path):
    """That version adds the keys of one RoPE for all layers, with their neutral values."""
    ropes = {
        "full_attention": {"rope_type": "default", "rope_theta": 2e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
    }
    neutral = {"rope_theta": None, "rope_type": "default"}
    config = load_config(write(tmp_path, "gemma3_text", rope_parameters={**ropes, **neutral}))
    assert (config.rope_theta, config.local_rope_theta) == (2e6, 3e4)
    assert config.rope_scaling is None


@pytest.mark.parametrize("name", VARIANTS)
def test_windows_and_layers_equal_transformers(tmp_path, name):
    hf = hf_variant(name)
    hf.save_pretrained(tmp_path)
    ours, window = load_config(tmp_path), getattr(hf.config, "sliding_window", None)
    kinds = getattr(hf.config, "layer_types", None)
    if kinds is None:
        kinds = ["full_attention" if window is None else "sliding_attention"] * ours.num_layers
    expected = [window if kind == "sliding_attention" else None for kind in kinds]
    assert list(ours.layer_windows or [None] * ours.num_layers) == expected
    assert ours.sliding_window == (window if all(expected) else None)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_counted_exactly(tmp_path, name):
    hf_variant(name).save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert parameters(loaded.config) == sum(p.numel() for p in loaded.model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("key", ["final_logit_softcapping", "num_experts", "attention_chunk_size"])
def test_a_key_of_another_family_is_refused_unless_neutral(tmp_path, family, key):
    load_config(write(tmp_path, family, **{key: None}))
    if FAMILIES[family].effect(key) == "read":
        return
    with pytest.raises(ValueError, match=f"{key} must be one of .* got 8"):
        load_config(write(tmp_path, family, **{key: 8}))


@pytest.mark.parametrize(
    "family, changes, message",
    [
        ("llama", {"sliding_window": 8}, "sliding_window must be one of"),
        ("llama", {"no_rope_layers": [1, 0, 1]}, "no_rope_layers must be one of"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act must be one of"),
        ("llama", {"pretraining_tp": 2}, "pretraining_tp must be one of"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved must be one of"),
        ("llama", {"attention_bias": "yes"}, "attention_bias must be true or false, got 'yes'"),
        ("llama", {"tie_word_embeddings": None}, "tie_word_embeddings must be true or false"),
        ("llama", {"num_hidden_layers": "3"}, "num_hidden_layers must be a positive integer"),
        ("llama", {"num_hidden_layers": ...}, "missing key 'num_hidden_layers'"),
        ("mistral", {"attention_bias": True}, "attention_bias must be one of"),
        ("mistral", {"sliding_window": 0}, "sliding_window must be None or an integer >= 1, got 0"),
        ("mistral", {"sliding_window": True}, "sliding_window must be None or an integer"),
        ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types must be one of"),
        ("qwen2", {"mlp_bias": True}, "mlp_bias must be one of"),
        ("qwen2", {"use_sliding_window": 1}, "use_sliding_window must be true or false, got 1"),
        (
            "qwen2",
            {"layer_types": ["sliding_attention"] * 3},
            "layer_types names 'sliding_attention', but sliding_window is not set",
        ),
        ("qwen2", {"max_window_layers": None}, "max_window_layers must be an integer, got None"),
        ("qwen3", {"layer_types": ["full_attention"]}, "layer_types must be a list of 3 of"),
        ("qwen3", {"layer_types": ["linear_attention"] * 3}, "layer_types must be a list of 3"),
        ("qwen3", {"head_dim": None}, "head_dim must be a positive integer, got None"),
        ("qwen3", {"head_dim": 9}, "head_dim must be even"),
        ("qwen3", {"hidden_act": "gelu"}, "hidden_act must be one of"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers must be a list of 0 and 1"),
        ("smollm3", {"no_rope_layers": [1, 0, 2]}, "no_rope_layers must be a list of 0 and 1"),
        ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval must be a positive"),
        ("olmo2", {"clip_qkv": 8.0}, "clip_qkv must be one of"),
        ("olmo2", {"architectures": ["OlmoForCausalLM"]}, "architectures must be one of"),
        ("qwen3", {"architectures": ["Qwen2ForCausalLM"]}, "architectures must be one of"),
        ("gemma", {"hidden_act": "silu"}, "hidden_act must be one of"),
        ("gemma", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping must be one of"),
        ("gemma2", {"hidden_activation": "silu"}, "hidden_activation must be one of"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar must be a number > 0"),
        ("gemma2", {"query_pre_attn_scalar": None}, "query_pre_attn_scalar must be a number > 0"),
        ("gemma2", {"attn_logit_softcapping": "x"}, "attn_logit_softcapping must be a number > 0"),
        ("gemma2", {"final_logit_softcapping": 0}, "final_logit_softcapping must be a number > 0"),
        ("gemma2", {"sliding_window": None}, "'sliding_attention', but sliding_window is not set"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention must be"),
        # transformers reads the key and does not use it.
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping must be one of"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern must be a positive"),
        ("gemma3_text", {"rope_parameters": {"rope_theta": 1e6}}, "rope_parameters must be an obj"),
        (
            "gemma3_text",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            r"rope_parameters\['sliding_attention'\] must be an object of rope_theta and rope_type",
        ),
        ("gemma3_text", {"rope_local_base_freq": 0}, "rope_local_base_freq must be a number > 0"),
        ("gemma3", {}, "model_type must be one of"),
        ("mixtral", {"num_local_experts": 0}, "num_local_experts must be a positive integer"),
        ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok must be <= .*, 8, got 9"),
        ("qwen3_moe", {"num_experts": 4, "num_local_experts": 8}, "must be equal, got"),
        ("qwen2_moe", {"num_local_experts": 4}, "num_local_experts must be one of"),
        ("qwen2_moe", {"norm_topk_prob": 1}, "norm_topk_prob must be true or false, got 1"),
        ("qwen2_moe", {"mlp_only_layers": 1}, "mlp_only_layers must be a list of layers, got 1"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step must be a positive"),
        (["llama"], {}, "model_type must be one of"),
        (None, {}, "model_type must be one of"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, family, changes, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, family, **changes))


@pytest.mark.parametrize("family", LLAMAS)
def test_a_checkpoint_under_another_family_s_name_does_not_load(tmp_path, family):
    """The tensors differ, or `architectures` does: no family reads another's checkpoint by accident."""
    first = next(name for name, (of, _) in VARIANTS.items() if of == family or family == "llama")
    hf_variant(first).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    for other in LLAMAS:
        if other == raw["model_type"]:
            continue
        (tmp_path / "config.json").write_text(json.dumps({**raw, "model_type": other}))
        with pytest.raises(ValueError):
            load_model(tmp_path)


@pytest.mark.parametrize(
    "rope",
    [
        {"factor": 4.0},
        {"factor": 4.0, "original_max_position_embeddings": 100},
        {"factor": None, "original_max_position_embeddings": 100},
        {"factor": 4.0, "beta_fast": 8, "beta_slow": 2},
        {"factor": 4.0, "truncate": False},
        {"factor": 4.0, "attention_factor": 1.5},
        {"factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.3},
        {"factor": 4.0, "mscale": 0.7},
        {"factor": 0.5},
        {"factor": 40.0, "rope_theta": 1e6},
    ],
)
def test_yarn_equals_transformers(tmp_path, rope):
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    folder = write(tmp_path, "llama", rope_scaling={"rope_type": "yarn", **rope}, head_dim=24)
    theirs = LlamaRotaryEmbedding(config_class("llama").from_pretrained(folder))
    ours = load_config(folder)
    torch.testing.assert_close(rope_frequencies(ours), theirs.inv_freq, rtol=1e-5, atol=0.0)
    assert ours.rope_scaling["attention_factor"] == pytest.approx(theirs.attention_scaling)


@pytest.mark.parametrize(
    "rope, message",
    [
        ({"factor": "4"}, r"rope_scaling\['factor'\] must be a number > 0, got '4'"),
        ({}, r"rope_scaling\['factor'\] must be a number > 0, got None"),
        ({"factor": 2.0, "beta_fast": -1}, r"rope_scaling\['beta_fast'\] must be a number > 0"),
        ({"factor": 2.0, "truncate": 1}, r"rope_scaling\['truncate'\] must be a bool, got 1"),
        ({"factor": 2.0, "mscale": "a", "mscale_all_dim": 1}, r"rope_scaling\['mscale'\] must be"),
        ({"factor": 2.0, "rope_theta": 1.0}, "rope_theta must be > 1 for yarn, got 1.0"),
    ],
)
def test_a_bad_yarn_is_refused_by_name(tmp_path, rope, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, "llama", rope_scaling={"rope_type": "yarn", **rope}))
