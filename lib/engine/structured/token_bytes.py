"""The bytes that each token of a vocabulary stands for. Introduced in chapter 12.

Decoding one token at a time does not give them: a token may hold half a character, and decoders drop spaces.
"""

from __future__ import annotations

import json
import re
from typing import Any

from lib.core.errors import InvalidRequest

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # SentencePiece's tokens for single bytes


def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's characters for the 256 bytes: printable ones stand for themselves, the others follow from 256 on."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {
        **{chr(byte): byte for byte in shown},
        **{chr(256 + i): byte for i, byte in enumerate(hidden)},
    }


def token_bytes(tokenizer: Any, vocab_size: int) -> list[bytes]:
    """The bytes of each id below `vocab_size`; b"" for special and unused ids, which stand for no text.

    Knows byte-level BPE (GPT-2, Llama 3, SmolLM2, Qwen) and SentencePiece with byte fallback (Llama 2,
    Mistral), read from the tokenizer's own decoder. Raises InvalidRequest for
    another kind.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = {} if backend is None else json.loads(backend.to_str()).get("decoder") or {}
    steps = decoder.get("decoders", [decoder])
    kinds = {step.get("type") for step in steps}
    words = {a["pattern"].get("String"): a["content"] for a in steps if a.get("type") == "Replace"}
    if "ByteLevel" in kinds:
        alphabet = byte_level_alphabet()
        convert = lambda text: _from_alphabet(text, alphabet)  # noqa: E731
    elif "Metaspace" in kinds or "\u2581" in words:
        convert = _from_pieces
    else:
        raise InvalidRequest(
            "structured_outputs needs a tokenizer whose decoder is byte-level or SentencePiece, "
            f"got {sorted(map(str, kinds))}",
            param="structured_outputs",
        )
    special = set(tokenizer.all_special_ids)
    added = {i: token for i, token in tokenizer.added_tokens_decoder.items()}
    special |= {i for i, token in added.items() if token.special}
    result = [b""] * vocab_size
    for text, token_id in tokenizer.get_vocab().items():
        if token_id < vocab_size and token_id not in special:
            # Added tokens are written as they are, not in the alphabet.
            result[token_id] = text.encode() if token_id in added else convert(text)
    return result


def _from_alphabet(text: str, alphabet: dict[str, int]) -> bytes:
    try:
        return bytes(alphabet[character] for character in text)
    except KeyError:
        return text.encode()


def _from_pieces(text: str) -> bytes:
    if found := _BYTE.fullmatch(text):
        return bytes([int(found[1], 16)])
    return text.replace("\u2581", " ").encode()
