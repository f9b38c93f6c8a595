"""The tokenizer of a SmolLM GGUF file, as transformers' files. Introduced in chapter 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

_CONTROL_TOKEN = 3  # GGUF's token type of <|im_start|> and its like
# How the text is split before BPE, by name: the rules themselves are llama.cpp's. One is known here.
_SUPPORTED = {
    "tokenizer.ggml.model": ("gpt2",),
    "tokenizer.ggml.pre": ("smollm",),
    "tokenizer.ggml.add_bos_token": (False, None),
}


def save_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """Write tokenizer.json and what goes with it; nothing for a file without a tokenizer.

    Raises ValueError for a tokenizer that is not implemented, KeyError for one that lacks a part.
    """
    if "tokenizer.ggml.model" not in fields:
        return
    for key, supported in _SUPPORTED.items():
        if (value := fields.get(key)) not in supported:
            raise ValueError(f"{key} must be {supported[0]!r}, got {value!r}")
    from transformers import PreTrainedTokenizerFast

    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ", 1)) for pair in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    )
    # SmolLM's rule: each digit by itself, then GPT-2's byte-level pieces.
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
    named = {
        f"{name}_token": tokens[fields[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if f"tokenizer.ggml.{key}_token_id" in fields
    }
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **named,
        model_max_length=fields[f"{fields['general.architecture']}.context_length"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = fields.get("tokenizer.chat_template")
    fast.save_pretrained(folder)
