"""Names of a prompt's blocks, for a router: equal names mean equal prompts up to there. Introduced in chapter 13.

Chapter 9's chain of hashes, for a prompt before tokenisation, which may be text. The names are shorter than the engine's:
a collision sends a request to a replica without its prefix, and has no other effect.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence


def prompt_names(prompt: str | Sequence[int], size: int, salt: str | None = None) -> list[bytes]:
    """One name per full block of `size` token ids, or of `size` characters of a text; 8 bytes each.

    The last token or character is in no block: the engine computes it in any case. salt: the request's cache_salt.
    Raises ValueError for a size below 1.
    """
    if size < 1:
        raise ValueError(f"size must be >= 1, got {size}")
    name, names = hashlib.blake2b(repr(salt).encode(), digest_size=8).digest(), []
    for start in range(0, (len(prompt) - 1) // size * size, size):
        part = prompt[start : start + size]
        # A lone surrogate is legal in JSON and not in UTF-8.
        data = part.encode(errors="surrogatepass") if isinstance(part, str) else array("q", part).tobytes()  # fmt: skip
        name = hashlib.blake2b(name + data, digest_size=8).digest()
        names.append(name)
    return names
