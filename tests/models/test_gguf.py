"""GGUF files of a tiny Llama, as llama.cpp's converter writes them: exact, or refused with file and tensor."""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map

from lib.attention.full import FullAttention
from lib.core.batch import Batch
from lib.models.checkpoint import load_model
from lib.models.gguf import convert
from lib.models.quantized.load import load_quantized
from lib.models.smollm2 import converted
from tests.families import hf_family
from tests.helpers import hf_llama

HEADS, KV_HEADS, HEAD_DIM, THETA = 6, 2, 8, 500000.0
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": THETA,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SMALL = dict(vocab_size=10, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS)
Change = Callable[[GGUFWriter], object]


def permuted(tensor: np.ndarray, heads: int) -> np.ndarray:
    """convert_hf_to_gguf.py, LlamaModel.permute: interleaves the halves of each head of q and k."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def rope_factors(factor: float, low: float = 1.0, high: float = 4.0, original: int = 8192):
    """convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors."""
    factors = []
    for i in range(0, HEAD_DIM, 2):
        wavelength = 2 * math.pi * THETA ** (i / HEAD_DIM)
        smooth = (original / wavelength - low) / (high - low)
        blend = 1 / ((1 - smooth) / factor + smooth) if smooth else factor
        fast, slow = wavelength < original / high, wavelength > original / low
        factors.append(1.0 if fast else factor if slow else blend)
    return np.array(factors, dtype=np.float32)


def write_gguf(
    path: Path,
    hf,
    *changes: Change,
    skip: str = "",
    architecture: str = "llama",
    arch: MODEL_ARCH = MODEL_ARCH.LLAMA,
):
    """`hf` as a GGUF file; `changes` add to it; keys that contain `skip` are left out."""
    c, writer = hf.config, GGUFWriter(path, architecture)
    writer.add_vocab_size(c.vocab_size)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_context_length(512)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(THETA)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<s>", "</s>", "<e>", *"abcdef", "ab"])
    writer.add_token_types([3, 3, 3, *[1] * 7])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages }}")
    for change in changes:
        change(writer)
    if skip:
        for keys in writer.kv_data:
            for key in [key for key in keys if skip in key]:
                del keys[key]
    names = get_tensor_name_map(arch, c.num_hidden_layers)
    for name, tensor in hf.state_dict().items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        if name.endswith("mlp.experts.gate_up_proj"):  # two tensors in the file
            for part, half in zip(("gate", "up"), tensor.chunk(2, dim=1)):
                layer = name.split(".")[2]
                writer.add_tensor(f"blk.{layer}.ffn_{part}_exps.weight", half.contiguous().numpy())
            continue
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            tensor = tensor + 1
        data = tensor.detach().squeeze().contiguous().numpy()
        if name.endswith("mlp.experts.down_proj"):
            name += ".weight"
        if architecture in ("llama", "smollm3") and ("q_proj" in name or "k_proj" in name):
            data = permuted(data, HEADS if "q_proj" in name else KV_HEADS)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_llama(**config):
    return hf_llama(3, **{**SMALL, "rope_parameters": {"rope_theta": THETA}, **config})


def same_logits(tmp_path: Path, hf, *changes: Change, **options) -> bool:
    """Whether the GGUF file of `hf` gives the logits of `hf`'s own checkpoint folder, bit for bit."""
    hf.save_pretrained(tmp_path / "hf")
    (tmp_path / "out").mkdir()
    convert(write_gguf(tmp_path / "tiny.gguf", hf, *changes, **options), tmp_path / "out")
    batch = Batch.of_prompts([[3, 4, 5, 6, 7] * 40, [8]])
    with torch.inference_mode():
        ours, theirs = (
            load_model(tmp_path / name).model(batch, FullAttention()) for name in ("out", "hf")
        )
    return torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "config, changes, options",
    [
        pytest.param(dict(tie_word_embeddings=True), (), {}, id="tied"),
        pytest.param(dict(tie_word_embeddings=False), (), {}, id="untied"),
        pytest.param(dict(attention_bias=True, mlp_bias=True), (), {}, id="biases"),
        pytest.param(
            dict(rope_parameters=LLAMA3),
            (lambda w: w.add_tensor("rope_freqs.weight", rope_factors(8.0)),),
            {},
            id="llama3",
        ),
        pytest.param(
            dict(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": THETA}),
            (lambda w: w.add_string("llama.rope.scaling.type", "linear"),)
            + (lambda w: w.add_rope_scaling_factor(4.0),),
            {},
            id="linear",
        ),
        pytest.param(
            dict(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": THETA}),
            (lambda w: w.add_float32("llama.rope.scale_linear", 4.0),),
            {},
            id="linear-old-key",
        ),
        pytest.param(
            {},
            (lambda w: w.add_string("llama.rope.scaling.type", "none"),)
            + (lambda w: w.add_rope_scaling_factor(4.0),),
            {},
            id="scaling-none",
        ),
        pytest.param(
            dict(rope_parameters={"rope_theta": 10000.0}),
            (),
            dict(skip="freq_base"),
            id="default-theta",
        ),
        pytest.param({}, (), dict(skip="vocab_size"), id="vocab-size-of-the-tokenizer"),
        pytest.param({}, (), dict(skip="tokenizer."), id="no-tokenizer"),
        pytest.param(
            {},
            (lambda w: w.add_key_length(8), lambda w: w.add_value_length(8)),
            {},
            id="head-size-said",
        ),
    ],
)
def test_a_gguf_file_is_the_checkpoint_that_it_was_made_from(tmp_path, config, changes, options):
    assert same_logits(tmp_path, tiny_llama(**config), *changes, **options)


ARCHITECTURES = {
    "qwen2": (MODEL_ARCH.QWEN2, {}),
    "qwen3": (MODEL_ARCH.QWEN3, {"head_dim": HEAD_DIM}),
    "smollm3": (MODEL_ARCH.SMOLLM3, {"num_hidden_layers": 4}),
    "olmo2": (MODEL_ARCH.OLMO2, {}),
    "gemma": (MODEL_ARCH.GEMMA, {"head_dim": HEAD_DIM}),
    "gemma2": (
        MODEL_ARCH.GEMMA2,
        {"head_dim": HEAD_DIM, "sliding_window": 7, "query_pre_attn_scalar": HEAD_DIM}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 8.0},
    ),
    "gemma3_text": (
        MODEL_ARCH.GEMMA3,
        {"head_dim": HEAD_DIM, "sliding_window": 7, "query_pre_attn_scalar": HEAD_DIM}
        | {"num_hidden_layers": 6},
    ),
    "mixtral": (MODEL_ARCH.LLAMA, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        MODEL_ARCH.QWEN2MOE,
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
        | {"shared_expert_intermediate_size": 36},
    ),
    "qwen3_moe": (
        MODEL_ARCH.QWEN3MOE,
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
        | {"norm_topk_prob": True, "head_dim": HEAD_DIM},
    ),
}
FILE_NAMES = {"gemma3_text": "gemma3", "mixtral": "llama"}
FILE_NAMES |= {"qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe"}


def more_keys(family: str, config: dict) -> list[Change]:
    """The keys that llama.cpp's converter adds for a family."""
    changes: list[Change] = []
    if family.startswith("gemma"):
        changes += [lambda w: w.add_key_length(HEAD_DIM), lambda w: w.add_value_length(HEAD_DIM)]
    if "sliding_window" in config:
        changes.append(lambda w: w.add_sliding_window(config["sliding_window"]))
    if "attn_logit_softcapping" in config:
        changes += [
            lambda w: w.add_attn_logit_softcapping(config["attn_logit_softcapping"]),
            lambda w: w.add_final_logit_softcapping(config["final_logit_softcapping"]),
        ]
    if "num_experts_per_tok" in config:
        experts = config.get("num_experts") or config["num_local_experts"]
        changes += [
            lambda w: w.add_expert_count(experts),
            lambda w: w.add_expert_used_count(config["num_experts_per_tok"]),
        ]
    if "moe_intermediate_size" in config:
        changes.append(lambda w: w.add_expert_feed_forward_length(config["moe_intermediate_size"]))
    if (shared := config.get("shared_expert_intermediate_size")) is not None:
        changes.append(lambda w: w.add_expert_shared_feed_forward_length(shared))
    return changes


def family_file(tmp_path: Path, family: str, *changes: Change, **config) -> Path:
    """The GGUF file of a random model of the family, whose folder is tmp_path / "hf"."""
    arch, own = ARCHITECTURES[family]
    rope = {"rope_parameters": {"rope_theta": THETA}, "rms_norm_eps": 1e-5}
    if family == "gemma3_text":
        rope["rope_parameters"] = {"full_attention": {"rope_theta": THETA}}
    hf = hf_family(family, seed=3, **{**SMALL, **rope, **own, **config})
    hf.save_pretrained(tmp_path / "hf")
    name = FILE_NAMES.get(family, family)
    changes = (*more_keys(family, own), *changes)
    return write_gguf(tmp_path / "tiny.gguf", hf, *changes, architecture=name, arch=arch)


@pytest.mark.parametrize(
    "family, tied",
    [(family, True) for family in ARCHITECTURES]
    # llama.cpp's first two Gemmas always share head and embedding.
    + [(family, False) for family in ARCHITECTURES if family not in ("gemma", "gemma2")],
)
def test_the_gguf_file_of_a_family_is_its_checkpoint(tmp_path, family, tied):
    file = family_file(tmp_path, family, tie_word_embeddings=tied)
    (tmp_path / "out").mkdir()
    convert(file, tmp_path / "out")
    batch = Batch.of_prompts([[3, 4, 5, 6, 7] * 40, [8]])
    with torch.inference_mode():
        ours, theirs = (
            load_model(tmp_path / name).model(batch, FullAttention()) for name in ("out", "hf")
        )
    if family.startswith("gemma"):  # whose file has 1 + weight of each norm, rounded
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0.0)
    else:
        assert torch.equal(ours, theirs)
    assert load_model(tmp_path / "out").tokenizer.encode("abc") == [9, 5]


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_the_blocks_of_a_family_s_file_are_read_in_place(tmp_path, family):
    file = family_file(tmp_path, family)
    loaded = load_quantized(file, "gguf", "float32", torch.device("cpu"), torch.float32)
    batch = Batch.of_prompts([[3, 4, 5, 6, 7] * 4, [8]])
    with torch.inference_mode():
        ours = loaded.model(batch, FullAttention())
        theirs = load_model(tmp_path / "hf").model(batch, FullAttention())
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "smollm3", "olmo2"])
def test_a_window_in_a_gguf_file_is_refused(tmp_path, family):
    file = family_file(tmp_path, family, lambda w: w.add_sliding_window(4))
    with pytest.raises(ValueError, match=f"{family}.attention.sliding_window must be 0, got 4"):
        convert(file, tmp_path)


def test_the_scalings_of_these_tests_change_something(tmp_path):
    """llama3 on this tiny model: without it the logits would differ, so the test above sees it."""
    assert rope_factors(8.0)[0] == 1.0 and rope_factors(8.0)[-1] > 1.0
    hf = tiny_llama(rope_parameters=LLAMA3)
    assert not same_logits(tmp_path, hf)


def test_tokenizer_and_config_of_the_file(tmp_path):
    convert(write_gguf(tmp_path / "tiny.gguf", tiny_llama()), tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.tokenizer.encode("abc") == [9, 5] and loaded.tokenizer.eos_token == "<e>"
    assert loaded.config.eos_token_ids == (2,) and loaded.config.num_kv_heads == KV_HEADS
    assert not loaded.config.tie_word_embeddings


@pytest.mark.parametrize(
    "changes, message",
    [
        pytest.param(
            [lambda w: w.add_tensor("rope_freqs.weight", rope_factors(8.0, original=4096))],
            "rope_freqs.weight is not Llama 3's",
            id="other-rope-freqs",
        ),
        pytest.param(
            [lambda w: w.add_tensor("rope_freqs.weight", np.ones(3, dtype=np.float32))],
            "rope_freqs.weight",
            id="misshapen-rope-freqs",
        ),
        pytest.param(
            [lambda w: w.add_tensor("blk.1.ffn_gate_exps.weight", np.ones((2, 2, 2), np.float32))],
            "the tensor blk.1.ffn_gate_exps.weight is none of architecture 'llama'",
            id="experts",
        ),
        pytest.param(
            [lambda w: w.add_tensor("blk.0.attn_q_norm.weight", np.ones(8, np.float32))],
            "blk.0.attn_q_norm.weight",
            id="query-norm",
        ),
        pytest.param(
            [lambda w: w.add_tensor("surprise", np.ones(8, np.float32))],
            "the tensor surprise is none of",
            id="odd-name",
        ),
        pytest.param(
            [lambda w: w.add_tensor("blk.0.attn_norm.weight.x", np.ones(8, np.int32))],
            "blk.0.attn_norm.weight.x",
            id="odd-suffix",
        ),
        pytest.param(
            [lambda w: w.add_string("llama.rope.scaling.type", "yarn")],
            "rope.scaling.type must be 'none' or 'linear', got 'yarn'",
            id="yarn",
        ),
        pytest.param(
            [lambda w: w.add_float32("llama.rope.scaling.attn_factor", 2.0)],
            "attn_factor must be 1, got 2.0",
            id="attn-factor",
        ),
        pytest.param(
            [lambda w: w.add_key_length(16)],
            "llama.rope.dimension_count must be the head size, 16, got 8",
            id="partial-rotary",
        ),
        pytest.param(
            [lambda w: w.add_key_length(8), lambda w: w.add_value_length(4)],
            "value_length must be the head size, 8, got 4",
            id="value-length",
        ),
    ],
)
def test_what_is_not_understood_is_refused_with_file_and_name(tmp_path, changes, message):
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), *changes)
    with pytest.raises(ValueError, match=f"tiny.gguf: .*{message}"):
        convert(file, tmp_path)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("model", "llama", "tokenizer.ggml.model must be 'gpt2', got 'llama'"),
        ("pre", "llama-bpe", "tokenizer.ggml.pre must be 'smollm', got 'llama-bpe'"),
        ("pre", None, "tokenizer.ggml.pre must be 'smollm', got None"),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(tmp_path, key, value, message):
    key = f"tokenizer.ggml.{key}"

    def change(writer: GGUFWriter) -> None:
        del writer.kv_data[0][key]
        if value is not None:
            writer.add_string(key, value)

    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), change)
    with pytest.raises(ValueError, match=f"tiny.gguf: {message}"):
        convert(file, tmp_path)


@pytest.mark.parametrize("key", ["block_count", "head_count", "context_length", "token_type"])
def test_a_missing_key_is_named(tmp_path, key):
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), skip=key)
    with pytest.raises(ValueError, match=f"tiny.gguf: missing key '.*{key}"):
        convert(file, tmp_path)


def test_a_tensor_of_a_type_without_a_reader_is_named(tmp_path):
    ints = np.ones((4, 8), dtype=np.int8)
    file = write_gguf(
        tmp_path / "tiny.gguf",
        tiny_llama(num_hidden_layers=1),
        lambda w: w.add_tensor("blk.1.ffn_up.weight", ints),
    )
    with pytest.raises(ValueError, match=r"tiny.gguf: the tensor blk.1.ffn_up.weight of type I8"):
        convert(file, tmp_path)


def test_what_llama_cpp_sets_for_a_mixture_cannot_be_changed(tmp_path):
    file = family_file(tmp_path, "qwen2_moe", lambda w: w.add_expert_weights_norm(True))
    with pytest.raises(ValueError, match="qwen2moe.expert_weights_norm must be False, got True"):
        convert(file, tmp_path)


@pytest.mark.parametrize("architecture", ["gemma3n", "mistral3"])
def test_another_architecture_is_refused(tmp_path, architecture):
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), architecture=architecture)
    with pytest.raises(
        ValueError, match=r"tiny.gguf: general.architecture must be one of \['llama', "
    ):
        convert(file, tmp_path)


@pytest.mark.parametrize("data", [b"", b"GGUF", b"not a gguf file at all" * 20])
def test_a_broken_gguf_file_is_named(tmp_path, data):
    (tmp_path / "broken.gguf").write_bytes(data)
    with pytest.raises(ValueError, match="broken.gguf"):
        convert(tmp_path / "broken.gguf", tmp_path)


def test_a_truncated_gguf_file_is_named(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="tiny.gguf is not a readable GGUF file"):
        convert(file, tmp_path)


# The cache of converted folders.


@pytest.fixture(scope="module")
def small_file(tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_llama())


@pytest.mark.parametrize("umask, mode", [(0o022, 0o755), (0o077, 0o700), (0o002, 0o775)])
def test_permissions_follow_the_umask(small_file, tmp_path, umask, mode):
    """A second user must be able to read what the first one left in a shared temporary folder."""
    before = os.umask(umask)
    try:
        folder = converted(small_file, "tiny", [tmp_path / "cache"])
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == mode
    assert {stat.S_IMODE(f.stat().st_mode) for f in folder.iterdir()} == {mode & 0o666}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["removed", "truncated"])
def test_a_damaged_folder_is_converted_again(small_file, tmp_path, name, damage):
    folder = converted(small_file, "tiny", [tmp_path])
    whole = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage == "truncated":
        (folder / name).write_bytes(whole[: len(whole) // 2])
    assert converted(small_file, "tiny", [tmp_path]) == folder
    assert (folder / name).read_bytes() == whole
    load_model(folder)


def test_a_whole_folder_is_left_alone(small_file, tmp_path):
    folder = converted(small_file, "tiny", [tmp_path])
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert converted(small_file, "tiny", [tmp_path]) == folder
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_what_a_killed_conversion_left_does_no_harm(small_file, tmp_path):
    partial = tmp_path / "tiny.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    load_model(converted(small_file, "tiny", [tmp_path]))
    assert not partial.exists()


def test_a_failed_conversion_leaves_no_folder(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="broken.gguf"):
        converted(tmp_path / "broken.gguf", "tiny", [tmp_path / "cache"])
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_the_next_cache_serves_where_one_cannot_be_written(small_file, tmp_path):
    (tmp_path / "file").write_text("no folder")
    caches = [tmp_path / "file" / "cache", tmp_path / "second"]
    assert converted(small_file, "tiny", caches) == tmp_path / "second" / "tiny"
    with pytest.raises(OSError, match="no place to write .* tiny.gguf"):
        converted(small_file, "tiny", caches[:1])


def test_processes_that_convert_at_once_get_one_whole_folder(small_file, tmp_path):
    code = (
        "from pathlib import Path; from lib.models.smollm2 import converted\n"
        "print('ready', flush=True); input()\n"
        f"folder = converted(Path({str(small_file)!r}), 'tiny', [Path({str(tmp_path)!r})])\n"
        "print(len((folder / 'model.safetensors').read_bytes()), folder.stat().st_ino)"
    )
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    children = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    try:
        assert [child.stdout.readline() for child in children] == ["ready\n"] * 3
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        outputs = [child.communicate(timeout=120)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0, 0]
    assert len(set(outputs)) == 1, "all were given the same folder, and it was made once"
    assert json.loads((tmp_path / "tiny" / "config.json").read_text())["vocab_size"] == 10
    assert not (tmp_path / "tiny.partial").exists()
