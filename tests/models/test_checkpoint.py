"""Checkpoint folders, good and broken: what loads, and what each error says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lib.attention.full import FullAttention
from lib.core.batch import Batch
from lib.models.checkpoint import (
    GPT2_CONFIG,
    RandomWeightsWarning,
    build_model,
    load_model,
    random_model,
)
from lib.models.config import load_config
from tests.helpers import gpt2_checkpoint, hf_gpt2, hf_llama, llama_checkpoint

PROMPTS = [[5, 9, 11, 30], [7]]


def logits(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        return load_model(folder).model(Batch.of_prompts(PROMPTS), FullAttention())


def edit_config(folder: Path, **changes) -> None:
    """Change keys of config.json; `...` removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def edit_tensors(folder: Path, change) -> None:
    tensors = dict(load_file(folder / "model.safetensors"))
    change(tensors)
    save_file(
        {k: v.contiguous() for k, v in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


@pytest.fixture(params=["llama", "gpt2"])
def folder(request, tmp_path) -> Path:
    return {"llama": llama_checkpoint, "gpt2": gpt2_checkpoint}[request.param](
        tmp_path / request.param, seed=3
    )


@pytest.fixture
def llama_folder(tmp_path) -> Path:
    return llama_checkpoint(tmp_path / "llama", seed=3)


@pytest.fixture
def gpt2_folder(tmp_path) -> Path:
    return gpt2_checkpoint(tmp_path / "gpt2", seed=3)


# What loads.


@pytest.mark.parametrize("make", [hf_llama, hf_gpt2])
def test_shards_and_one_file_are_the_same(make, tmp_path):
    hf = make(3)
    hf.save_pretrained(tmp_path / "one")
    hf.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert not (tmp_path / "many" / "model.safetensors").exists()
    assert torch.equal(logits(tmp_path / "one"), logits(tmp_path / "many"))


@pytest.mark.parametrize("make, prefix", [(hf_llama, "model."), (hf_gpt2, "transformer.")])
def test_the_prefix_of_the_body_may_be_there_or_not(make, prefix, tmp_path):
    make(3).save_pretrained(tmp_path)
    expected = logits(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert any(name.startswith(prefix) for name in names)
    edit_tensors(
        tmp_path, lambda t: [t.__setitem__(n.removeprefix(prefix), t.pop(n)) for n in list(t)]
    )
    assert not any(name.startswith(prefix) for name in load_file(tmp_path / "model.safetensors"))
    assert torch.equal(logits(tmp_path), expected)


def test_gpt2_has_160_tensors_of_which_12_are_masks(tmp_path):
    """openai-community/gpt2 holds 148 parameters and 12 causal masks, without a prefix and without a head."""
    model = build_model(GPT2_CONFIG, device="meta")
    shapes = model.checkpoint_shapes()
    assert len(shapes) == 148
    small = hf_gpt2(3, n_layer=12, n_embd=24)
    small.save_pretrained(tmp_path)
    expected = logits(tmp_path)

    def as_openai_published(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        for layer in range(12):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 8, 8).tril()

    edit_tensors(tmp_path, as_openai_published)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert len(file.keys()) == 160
    assert torch.equal(logits(tmp_path), expected)


def test_conv1d_weights_are_transposed(gpt2_folder):
    tensors, model = load_file(gpt2_folder / "model.safetensors"), load_model(gpt2_folder).model
    name = next(n for n in tensors if n.endswith("h.1.attn.c_attn.weight"))
    assert torch.equal(model.blocks[1].qkv.weight, tensors[name].T)


def test_a_tied_head_may_be_repeated_if_it_is_equal(tmp_path):
    folder = llama_checkpoint(tmp_path, seed=3, tie_word_embeddings=True)
    expected = logits(folder)
    edit_tensors(
        folder, lambda t: t.__setitem__("lm_head.weight", t["model.embed_tokens.weight"].clone())
    )
    assert torch.equal(logits(folder), expected)
    model = load_model(folder).model
    assert model.lm_head.weight.data_ptr() == model.token_embedding.weight.data_ptr()
    edit_tensors(folder, lambda t: t["lm_head.weight"].add_(0.001))
    with pytest.raises(ValueError, match="lm_head.weight of its own.*tie_word_embeddings"):
        load_model(folder)


def test_bfloat16_checkpoints_load_in_any_dtype(tmp_path):
    hf_llama(3).to(torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in load_model(tmp_path).model.parameters()} == {torch.float32}
    assert {p.dtype for p in load_model(tmp_path, dtype=torch.bfloat16).model.parameters()} == {
        torch.bfloat16
    }


def test_eos_ids_come_from_the_generation_config_first(llama_folder):
    assert load_config(llama_folder).eos_token_ids == (2,)
    (llama_folder / "generation_config.json").write_text('{"eos_token_id": [4, 5]}')
    assert load_config(llama_folder).eos_token_ids == (4, 5)
    (llama_folder / "generation_config.json").unlink()
    edit_config(llama_folder, eos_token_id=None)
    assert load_config(llama_folder).eos_token_ids == ()


def test_older_rope_keys_mean_the_same(tmp_path):
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
    folder = llama_checkpoint(tmp_path, seed=3, rope_parameters=rope)
    expected = logits(folder)
    edit_config(
        folder,
        rope_parameters=...,
        rope_theta=500.0,
        rope_scaling={"type": "linear", "factor": 4.0},
    )
    assert torch.equal(logits(folder), expected)


def test_a_stale_index_and_its_shards_are_ignored_beside_a_single_file(tmp_path):
    """As in transformers: the shards of an earlier save survive beside the model.safetensors of a later one."""
    from transformers import AutoModelForCausalLM

    hf_llama(3).save_pretrained(tmp_path, max_shard_size="20KB")
    old = logits(tmp_path)
    hf_llama(4).save_pretrained(tmp_path / "new")
    shutil.copy(tmp_path / "new" / "model.safetensors", tmp_path)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert torch.equal(logits(tmp_path), logits(tmp_path / "new"))
    assert not torch.equal(logits(tmp_path), old)
    with torch.inference_mode():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path)(torch.tensor([PROMPTS[0]])).logits
    assert torch.allclose(logits(tmp_path)[0], theirs[0, -1], atol=1e-4)


@pytest.mark.parametrize("named", [..., None, [], ["own"]])
def test_architectures_may_be_absent_or_name_the_family(folder, named):
    own = json.loads((folder / "config.json").read_text())["architectures"]
    expected = logits(folder)
    edit_config(folder, architectures=own if named == ["own"] else named)
    assert torch.equal(logits(folder), expected)


def test_a_folder_without_tokenizer_has_none(folder):
    assert load_model(folder).tokenizer is None


# What does not.


def test_tensors_that_are_missing_extra_or_misshapen_are_all_listed(folder):
    def spoil(tensors):
        names = sorted(n for n in tensors if "0." in n)
        tensors["surprise.weight"] = torch.zeros(2)
        spoil.missing, spoil.misshapen = names[0], names[1]
        del tensors[names[0]]
        tensors[names[1]] = torch.zeros(3, 3)

    edit_tensors(folder, spoil)
    with pytest.raises(ValueError) as error:
        load_model(folder)
    message = str(error.value)
    assert f"missing: {spoil.missing.split('.', 1)[1]}" in message
    assert "unexpected: surprise.weight" in message
    assert f"{spoil.misshapen.split('.', 1)[1]} is [3, 3], should be [" in message
    assert str(folder) in message


def test_two_tensors_of_one_name_are_refused(llama_folder):
    edit_tensors(
        llama_folder, lambda t: t.__setitem__("norm.weight", t["model.norm.weight"].clone() + 1)
    )
    with pytest.raises(ValueError) as error:
        load_model(llama_folder)
    for part in ("holds one tensor twice", "'norm.weight'", "'model.norm.weight'", "safetensors"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "named",
    [
        ["MistralForCausalLM"],
        ["GemmaForCausalLM"],
        ["GraniteForCausalLM"],
        ["SmolLM3ForCausalLM"],
        ["Llama4ForCausalLM"],
        ["LlamaForCausalLM", "MistralForCausalLM"],
        "MistralForCausalLM",
    ],
)
def test_a_renamed_checkpoint_of_another_family_is_refused(llama_folder, named):
    edit_config(llama_folder, architectures=named)
    with pytest.raises(ValueError, match="architectures must be one of .* for model_type 'llama'"):
        load_model(llama_folder)


def test_a_transposed_tensor_is_misshapen(gpt2_folder):
    edit_tensors(
        gpt2_folder,
        lambda t: t.__setitem__(
            "transformer.h.0.mlp.c_fc.weight", t["transformer.h.0.mlp.c_fc.weight"].T
        ),
    )
    with pytest.raises(
        ValueError, match=r"misshapen: h.0.mlp.c_fc.weight is \[192, 48\], should be \[48, 192\]"
    ):
        load_model(gpt2_folder)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda data: data[:-100], id="truncated"),
        pytest.param(lambda data: data[:4], id="almost-empty"),
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: b"<html>404 not found</html>" * 50, id="garbage"),
        pytest.param(
            lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
            id="lfs-pointer",
        ),
    ],
)
def test_an_unreadable_file_is_named(folder, spoil):
    file = folder / "model.safetensors"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(ValueError, match="model.safetensors cannot be read"):
        load_model(folder)


def test_a_missing_config_or_weights_file_is_named(folder):
    (folder / "model.safetensors").rename(folder / "moved")
    with pytest.raises(FileNotFoundError, match="no model.safetensors"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no config.json"):
        load_model(folder)


def test_missing_shards_are_named(tmp_path):
    hf_llama(3).save_pretrained(tmp_path, max_shard_size="20KB")
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=lost.name):
        load_model(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', '{"metadata": {}}'])
def test_a_broken_index_is_named(tmp_path, text):
    hf_llama(3).save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match="model.safetensors.index.json is not a safetensors index"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{not json", "not valid JSON"),
        ("", "not valid JSON"),
        ("[1, 2]", "must hold a JSON object, got list"),
        ("\xff\xfe", "not valid JSON"),
    ],
)
def test_a_broken_config_is_named(folder, text, message):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"config.json.*{message}"):
        load_model(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            dict(model_type="mamba"),
            r"model_type must be one of \['gemma', .*'llama', .*\], got 'mamba'",
        ),
        (dict(model_type=...), "model_type must be one of .* got None"),
        (dict(hidden_act="gelu"), r"hidden_act must be one of \['silu'\], got 'gelu'"),
        (dict(hidden_size=...), "missing key 'hidden_size'"),
        (dict(max_position_embeddings=...), "missing key 'max_position_embeddings'"),
        (
            dict(rope_parameters={"rope_type": "longrope", "factor": 2.0}),
            "rope_type must be one of .* got 'longrope'",
        ),
        (dict(rope_parameters={"rope_type": "linear", "rope_theta": 1e4}), "factor"),
        (
            dict(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": "two"}),
            "factor",
        ),
        (
            dict(rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}),
            "low_freq_factor",
        ),
        (dict(rope_parameters={"rope_theta": None}), "rope_theta"),
        (dict(rope_parameters="fast"), "rope"),
        (dict(num_key_value_heads=4), "num_heads must be a multiple of num_kv_heads, got 6 and 4"),
        (dict(num_attention_heads=0), "num_heads must be a positive integer, got 0"),
        (
            dict(num_attention_heads=0, head_dim=None),
            "num_attention_heads must be a positive integer, got 0",
        ),
        (dict(hidden_size="48"), "hidden_size"),
        (dict(num_hidden_layers=-1), "num_hidden_layers must be a positive integer, got -1"),
        (
            dict(num_attention_heads=7, num_key_value_heads=7, head_dim=None),
            "must be a multiple of num_attention_heads",
        ),
        (dict(eos_token_id="</s>"), "eos_token_id"),
    ],
)
def test_llama_variants_that_are_not_implemented_are_refused(llama_folder, changes, message):
    (llama_folder / "generation_config.json").unlink()
    edit_config(llama_folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_model(llama_folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(activation_function="relu"), "activation_function must be one of .* got 'relu'"),
        (
            dict(scale_attn_by_inverse_layer_idx=True),
            "scale_attn_by_inverse_layer_idx must be one of",
        ),
        (dict(n_head=5), "n_embd must be a multiple of n_head, got 48 and 5"),
        (dict(n_layer=...), "missing key 'n_layer'"),
    ],
)
def test_gpt2_variants_that_are_not_implemented_are_refused(gpt2_folder, changes, message):
    edit_config(gpt2_folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_model(gpt2_folder)


def test_a_broken_tokenizer_is_an_error_not_a_silence(llama_folder):
    (llama_folder / "tokenizer.json").write_text("{broken")
    with pytest.raises(ValueError, match="the tokenizer in .* cannot be read"):
        load_model(llama_folder)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c"])
def test_a_path_that_is_no_folder_is_an_error(name):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        load_model(name)


def test_an_unknown_name_is_an_error():
    with pytest.raises(FileNotFoundError, match="must be one of .*, a folder or a model on the"):
        load_model("nobody/nothing")


def test_a_checkpoint_survives_being_moved(folder, tmp_path):
    expected = logits(folder)
    shutil.move(folder, tmp_path / "elsewhere")
    assert torch.equal(logits(tmp_path / "elsewhere"), expected)


# Random weights.


def test_gpt2_without_a_hub_says_loudly_that_its_weights_are_random(monkeypatch):
    def offline(hub_id, **options):
        raise LocalEntryNotFoundError("offline, and not in the cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.warns(RandomWeightsWarning, match="RANDOM"):
        loaded = load_model("gpt2", dtype=torch.bfloat16)
    assert loaded.weights == "random" and loaded.tokenizer is None and loaded.folder is None
    parameters = {id(p): p for p in loaded.model.parameters()}.values()
    assert sum(p.numel() for p in parameters) == 124_439_808


def test_random_weights_are_seeded():
    config = load_model_config()
    first, second, other = random_model(config), random_model(config), random_model(config, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert not torch.equal(first.token_embedding.weight, other.token_embedding.weight)


def load_model_config():
    from dataclasses import replace

    return replace(
        GPT2_CONFIG,
        hidden_size=24,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=12,
        vocab_size=11,
        intermediate_size=20,
        max_position_embeddings=9,
    )
