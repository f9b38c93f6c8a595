"""RoPE keys of config.json in all their historical places: what transformers computes, or a clear refusal."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lib.models.config import load_config
from lib.models.llama import rope_frequencies

BASE = dict(
    model_type="llama",
    vocab_size=61,
    hidden_size=64,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=512,
    hidden_act="silu",
)
LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {"rope_type": "longrope", "factor": 2.0}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
LLAMA3_SHORT = {k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"}

TABLE = {
    "nothing": {},
    "theta": {"rope_theta": 500.0},
    "v5": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "v5-linear": {"rope_parameters": {**LINEAR, "rope_theta": 500.0}},
    "v4-linear": {"rope_scaling": LINEAR, "rope_theta": 500.0},
    "v4-linear-type": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "type-and-rope-type": {"rope_scaling": {**LINEAR, "type": "dynamic"}},
    "v4-null-scaling": {"rope_scaling": None, "rope_theta": 500.0},
    "both-linear": {"rope_parameters": {"rope_theta": 500.0}, "rope_scaling": LINEAR},
    "both-theta-on-top": {
        "rope_parameters": {"rope_theta": 500.0},
        "rope_scaling": LINEAR,
        "rope_theta": 300.0,
    },
    "both-empty-scaling": {"rope_parameters": {**LINEAR, "rope_theta": 500.0}, "rope_scaling": {}},
    "both-scalings": {"rope_parameters": {**LLAMA3, "rope_theta": 500.0}, "rope_scaling": LINEAR},
    "theta-on-top-of-v5": {"rope_parameters": {"rope_type": "default"}, "rope_theta": 500.0},
    "theta-on-top-of-v5-linear": {"rope_parameters": LINEAR, "rope_theta": 500.0},
    "theta-in-both": {"rope_parameters": {"rope_theta": 300.0}, "rope_theta": 500.0},
    "theta-in-v4-scaling": {"rope_scaling": {**LINEAR, "rope_theta": 300.0}},
    "theta-in-v4-scaling-and-top": {
        "rope_scaling": {**LINEAR, "rope_theta": 300.0},
        "rope_theta": 500.0,
    },
    "llama3": {"rope_parameters": {**LLAMA3, "rope_theta": 500.0}},
    "llama3-v4": {"rope_scaling": LLAMA3, "rope_theta": 500.0},
    "llama3-original-on-top": {
        "rope_scaling": LLAMA3_SHORT,
        "original_max_position_embeddings": 32,
    },
    "llama3-original-in-both": {"rope_scaling": LLAMA3, "original_max_position_embeddings": 16},
    "llama3-original-missing": {"rope_scaling": LLAMA3_SHORT},
    "linear-original-on-top": {"rope_scaling": LINEAR, "original_max_position_embeddings": 16},
    "default-with-a-factor": {"rope_scaling": {"rope_type": "default", "factor": 4.0}},
    "head-dim": {"rope_scaling": LLAMA3, "head_dim": 6},
    "partial-of-one": {"rope_scaling": LINEAR, "partial_rotary_factor": 1.0},
}


def write(folder, changes) -> None:
    (folder / "config.json").write_text(json.dumps({**BASE, **changes}))


@pytest.mark.parametrize("changes", TABLE.values(), ids=TABLE)
def test_frequencies_equal_transformers(tmp_path, changes):
    write(tmp_path, changes)
    expected = LlamaRotaryEmbedding(LlamaConfig.from_pretrained(tmp_path)).inv_freq
    ours = rope_frequencies(load_config(tmp_path))
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0.0)


def test_the_table_holds_different_frequencies(tmp_path):
    """A table whose rows all agree would pass whatever key is read."""
    seen = set()
    for changes in TABLE.values():
        write(tmp_path, changes)
        seen.add(tuple(rope_frequencies(load_config(tmp_path)).tolist()))
    assert len(seen) >= 10


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rope_parameters": LINEAR, "rope_scaling": LONGROPE}, "rope_type must be .* 'longrope'"),
        ({"rope_parameters": {"rope_type": None}}, "rope_type must be one of .* got None"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object, got 'linear'"),
        ({"rope_parameters": [1]}, r"rope_parameters must be an object, got \[1\]"),
        (
            {"rope_parameters": {"full_attention": LINEAR}},
            r"rope_parameters\['full_attention'\] must be no object",
        ),
        ({"rope_theta": None}, "rope_theta must be a number > 0, got None"),
        ({"rope_scaling": {**LINEAR, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1, got 0.5"),
        (
            {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": None}},
            r"rope_scaling\['original_max_position_embeddings'\] must be a number > 0, got None",
        ),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor.* must be >"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, changes, message):
    write(tmp_path, changes)
    with pytest.raises(ValueError, match=message):
        load_config(tmp_path)
