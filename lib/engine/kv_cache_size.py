"""Number and length of a KV cache's blocks, by the options or by free memory. Introduced in chapter 4."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lib.cache.sizing import available_bytes, gib
from lib.core.batch import Batch
from lib.core.engine_options import EngineOptions
from lib.engine.runner import ModelRunner


@dataclass(frozen=True)
class KVCacheSize:
    """Size of a cache, and the longest sequence that it holds, in tokens.

    num_blocks: blocks with the null block, or the slots of a contiguous cache. block_size: tokens.
    """

    num_blocks: int
    block_size: int
    max_model_len: int


def contiguous_size(
    options: EngineOptions, max_model_len: int, per_token: int, budget: Callable[[], int]
) -> KVCacheSize:
    """Slots as long as the longest sequence allowed, one per sequence.

    per_token: bytes that one token takes. budget: bytes that the cache may take. Raises ValueError
    where the slots do not fit, unless max_model_len was left open: then it is the longest that fits.
    """
    available = budget()
    needed = options.max_num_seqs * max_model_len * per_token
    if needed > available:
        fits = available // (options.max_num_seqs * per_token)
        if options.max_model_len is not None or fits < 1:
            most = available // (max_model_len * per_token)
            raise ValueError(
                f"a contiguous KV cache of max_num_seqs {options.max_num_seqs} x max_model_len "
                f"{max_model_len} tokens takes {gib(needed)}, but {gib(available)} are available: "
                f"at most {most} sequences of that length fit, or a max_model_len of {fits}"
            )
        max_model_len = fits
    return KVCacheSize(options.max_num_seqs, max_model_len, max_model_len)


def paged_size(
    options: EngineOptions, max_model_len: int, per_token: int, budget: Callable[[], int]
) -> KVCacheSize:
    """Blocks of options.block_size tokens: num_blocks of them, or as many as fit into the budget.

    Arguments as in `contiguous_size`; `budget` is called where num_blocks is None. Raises ValueError
    where one sequence of a max_model_len that was given does not fit.
    """
    size = options.block_size
    num_blocks = options.num_blocks
    if num_blocks is None:
        # More blocks than all sequences at their longest could fill would lie idle.
        most = options.max_num_seqs * math.ceil(max_model_len / size) + 1
        num_blocks = min(most, budget() // (size * per_token))
    capacity = (num_blocks - 1) * size
    if capacity < 1 or (options.max_model_len is not None and capacity < max_model_len):
        raise ValueError(
            f"num_blocks {num_blocks} (block 0 stays empty) of block_size {size} hold "
            f"{max(capacity, 0)} tokens ({gib(num_blocks * size * per_token)}), less than one sequence "
            f"of max_model_len {max_model_len}: num_blocks must be >= "
            f"{math.ceil(max_model_len / size) + 1}, or max_model_len smaller"
        )
    return KVCacheSize(num_blocks, size, min(max_model_len, capacity))


def budget_bytes(
    runner: ModelRunner, options: EngineOptions, device: torch.device, rows_per_sequence: int = 1
) -> int:
    """Bytes that a KV cache may take: kv_cache_memory_bytes, or what is left beside a largest step.

    rows_per_sequence: rows of logits, k + 1 where k drafts are verified.
    """
    if options.kv_cache_memory_bytes is not None:
        return options.kv_cache_memory_bytes
    tokens = options.max_num_batched_tokens if device.type == "cuda" else 1

    def largest_step() -> None:
        # As many sequences as a step may have, the first of them as long as may be: most logits
        # and most attention.
        rows = min(tokens, options.max_num_seqs * rows_per_sequence)
        lengths, spare = [1] * rows, tokens - rows
        for row in range(len(lengths)):
            extra = min(spare, runner.model.config.max_position_embeddings - 1)
            lengths[row], spare = 1 + extra, spare - extra
        batch = Batch.of_prompts([[0] * n for n in lengths], device)
        # What sampling takes: float64, an order and a running sum.
        runner.run(batch).double().sort(-1)

    return available_bytes(device, largest_step)
