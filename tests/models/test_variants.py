"""Forward passes of the families that differ from Llama, against transformers'. Tolerance: 1e-4 in float32."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from lib.attention.full import FullAttention
from lib.core.batch import Batch
from lib.models.checkpoint import build_model, load_model
from tests.families import VARIANTS, WINDOW, hf_family, hf_variant
from tests.models.test_models import LLAMA3, TOLERANCE, difference

# One of each kind of model.
SOME = ["mistral", "qwen2", "qwen3", "smollm3", "olmo2", "gemma", "qwen2_moe"]
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_family_equals_transformers(tmp_path, name):
    assert difference(hf_variant(name, seed=3), tmp_path, lengths=(1, 7, 3, 20, 20, 8)) <= TOLERANCE


@pytest.mark.parametrize("family", ["llama", *SOME, "gemma2"])
@pytest.mark.parametrize(
    "rope",
    [
        LLAMA3,
        YARN,
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_every_rope_scaling_in_every_family(tmp_path, family, rope):
    hf = hf_family(family, seed=5, rope_parameters=dict(rope))
    assert difference(hf, tmp_path, lengths=(130, 3, 9)) <= TOLERANCE


@pytest.mark.parametrize("window", [1, 2, 19, 20, 21])
def test_windows_at_the_edges_of_a_sequence(tmp_path, window):
    hf = hf_family("mistral", seed=4, sliding_window=window)
    assert difference(hf, tmp_path, lengths=(20, 20, 1, 2)) <= TOLERANCE


@settings(max_examples=25)
@given(
    name=st.sampled_from(sorted(VARIANTS)),
    kv_heads=st.integers(1, 3),
    ratio=st.sampled_from([1, 2, 5]),
    width=st.sampled_from([2, 4, 6]),
    tied=st.booleans(),
    window=st.integers(1, 12),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    seed=st.integers(0, 9),
)
def test_random_shapes_equal_transformers(
    tmp_path_factory, name, kv_heads, ratio, width, tied, window, lengths, seed
):
    changes = dict(
        num_key_value_heads=kv_heads,
        num_attention_heads=kv_heads * ratio,
        hidden_size=8 * width * kv_heads * ratio // 2,
        intermediate_size=37,
        tie_word_embeddings=tied,
    )
    if VARIANTS[name][1].get("sliding_window"):
        changes["sliding_window"] = window
    hf = hf_variant(name, seed, **changes)
    assert difference(hf, tmp_path_factory.mktemp("random"), lengths) <= TOLERANCE


@pytest.mark.parametrize(
    "name, attribute, plain",
    [
        ("mistral", "window", None),
        ("qwen2-some-windows", "window", None),
        ("qwen3-layer-types", "window", None),
        ("smollm3-windows", "window", None),
        ("smollm3", "rotates", True),
        ("smollm3-list", "rotates", True),
        ("qwen3", "q_norm", None),
        ("olmo2", "q_norm", None),
        ("olmo2", "post_norm", False),
        ("gemma", "activation", F.silu),
        ("gemma2", "softcap", None),
        ("gemma2", "query_scale", 1.0),
        ("gemma2", "attention_post_norm", torch.nn.Identity()),
        ("gemma2", "mlp_post_norm", torch.nn.Identity()),
        ("gemma3", "window", 1000),
        ("gemma3", "q_norm", None),
    ],
)
def test_each_difference_changes_the_logits(tmp_path, name, attribute, plain):
    """The tests above can tell a family from one that lacks a difference."""
    hf_variant(name, seed=3).save_pretrained(tmp_path)
    model = load_model(tmp_path).model
    batch = Batch.of_prompts([[5, 9, 11, 30, 7, 8, 4, 3, 22, 17, 6, 12]])
    with torch.inference_mode():
        exact = model(batch, FullAttention())
        for block in model.blocks:
            setattr(block, attribute, plain)
            if attribute == "q_norm":
                block.k_norm = None
        assert (exact - model(batch, FullAttention())).abs().max() > 0.1


@pytest.mark.parametrize(
    "name, field, plain",
    [
        ("gemma", "embedding_scale", 1.0),
        ("gemma2", "final_softcap", None),
        ("gemma3", "local_rope_theta", None),
        ("mixtral", "norm_topk_prob", False),
        ("qwen3_moe-windows", "norm_topk_prob", False),
        ("qwen2_moe", "norm_topk_prob", True),
    ],
)
def test_each_field_changes_the_logits(tmp_path, name, field, plain):
    """The same for what is no part of one layer."""
    hf_variant(name, seed=3).save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    changed = build_model(replace(loaded.config, **{field: plain}))
    changed.load_state_dict(loaded.model.state_dict())
    batch = Batch.of_prompts([[5, 9, 11, 30, 7, 8, 4, 3, 22, 17, 6, 12]])
    with torch.inference_mode():
        exact, other = (model(batch, FullAttention()) for model in (loaded.model, changed))
    assert (exact - other).abs().max() > 0.1


def test_a_window_hides_what_lies_behind_it(tmp_path):
    """With one layer, a token that the last query's window has left changes nothing at all."""
    hf_family("mistral", seed=4, num_hidden_layers=1, sliding_window=WINDOW).save_pretrained(
        tmp_path
    )
    model = load_model(tmp_path).model
    prompt = [5, 9, 11, 30, 7, 8, 4, 3, 22, 17]
    with torch.inference_mode():
        exact = model(Batch.of_prompts([prompt]), FullAttention())
        for position in range(len(prompt)):
            other = [*prompt[:position], 40, *prompt[position + 1 :]]
            same = torch.equal(exact, model(Batch.of_prompts([other]), FullAttention()))
            assert same == (position < len(prompt) - WINDOW), position


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_load_as_transformers_loads_them(tmp_path, name, dtype):
    hf_variant(name, seed=6).to(dtype).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype)[6:]
    hf = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    prompt = [5, 9, 11, 30, 7, 8, 4, 3, 22, 17]
    with torch.inference_mode():
        ours = load_model(tmp_path).model(Batch.of_prompts([prompt]), FullAttention())
        theirs = hf(torch.tensor([prompt])).logits[:, -1]
    assert (ours - theirs).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", SOME)
def test_shards_and_one_file_are_the_same(tmp_path, name):
    hf = hf_variant(name, seed=6)
    hf.save_pretrained(tmp_path / "one")
    hf.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    batch = Batch.of_prompts([[5, 9, 11], list(range(3, 30))])
    with torch.inference_mode():
        one, many = (
            load_model(tmp_path / folder).model(batch, FullAttention())
            for folder in ("one", "many")
        )
    assert torch.equal(one, many)
