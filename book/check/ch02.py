"""Chapter 2: compares with the bytes of the cache that the engine allocates for such a slot."""

from collections.abc import Callable

import torch

from book.check import expect
from lib.bench.measure.data_sheets import LLAMA_7B, MISTRAL_7B
from lib.cache.kv_cache import KVCache

FUNCTION = "slots_that_fit"


def slot_bytes(config, slot_tokens: int, dtype: torch.dtype) -> int:
    """Bytes of K and V in one slot. The device "meta" gives tensors their shapes and no memory."""
    cache = KVCache(config, 1, slot_tokens, dtype=dtype, device="meta")
    return cache.nbytes


def check(answer: Callable[..., int]) -> None:
    for name, config in {"LLAMA_7B": LLAMA_7B, "MISTRAL_7B": MISTRAL_7B}.items():
        for slot_tokens in (1, 1000, 4096):
            for dtype in (torch.float32, torch.bfloat16):
                for memory in (10**9, 8 * 10**9, 80 * 10**9):
                    expected = memory // slot_bytes(config, slot_tokens, dtype)
                    got = answer(config, memory, slot_tokens, dtype.itemsize)
                    call = f"slots_that_fit({name}, {memory}, {slot_tokens}, {dtype.itemsize})"
                    expect(call, got, expected)
