"""The engine at a glance, for the page: running and waiting sequences, and the state of the block pool.

The page draws the pool as squares. Up to MAX_SQUARES blocks, a square is a block and the snapshot names each block.
Beyond that a square stands for several neighbouring blocks, and the snapshot has a summary of each square, so that its
size is bounded for a pool of any size. Introduced in chapter 5.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import numpy as np

from lib.core.request import Request
from lib.engine.llm import LLM

MAX_SQUARES = 4096
_MOST_WAITING = 200  # a page cannot show more; the count is complete


def take_snapshot(llm: LLM) -> dict[str, Any]:
    """Plain data, copied, of this moment. Only the thread that owns the LLM may call it.

    running: (id, completion, prompt tokens, output tokens, computed tokens, block ids, number of blocks); block ids are
    empty where a square is several blocks. squares: (square, index of a running sequence or -1, blocks in use, tokens
    written, blocks cached) for each square that is not free, empty where a square is one block; the index is that of
    the sequence that holds most blocks of the square. `take_snapshot` takes a time proportional to the used and cached
    blocks; what it returns holds at most MAX_SQUARES squares or blocks and `_MOST_WAITING` waiting requests.
    """
    scheduler, manager, stats = llm.scheduler, llm.manager, llm.stats()
    share = max(1, -(-manager.num_blocks // MAX_SQUARES))
    first = 1 if llm.options.kv_cache == "paged" else 0  # the null block belongs to no request
    whole = share == 1
    return {
        "running": [
            (*_row(r), blocks if whole else [], len(blocks))
            for r in scheduler.running
            for blocks in [[block for block in r.block_ids if block >= first]]
        ],
        "waiting": [_row(r) for r in islice(scheduler.waiting, _MOST_WAITING)],
        "num_waiting": len(scheduler.waiting),
        "blocks_total": manager.num_blocks,
        "blocks_free": manager.num_free_blocks,
        "num_cached": manager.num_cached_blocks,
        "blocks_cached": list(manager.cached_block_ids) if whole else [],
        "blocks_per_square": share,
        "squares": [] if whole else _squares(llm, first, share),
        "prefix_queries": manager.num_queries,
        "prefix_hits": manager.num_hits,
        "draft_tokens": stats["draft_tokens"],
        "accepted_tokens": stats["accepted_tokens"],
        "mean_accepted_length": stats["mean_accepted_length"],
        "block_size": manager.block_size,
        "first_block": first,
        "max_num_seqs": scheduler.max_num_seqs,
        "preemptions": scheduler.num_preemptions,
    }


def _squares(llm: LLM, first: int, share: int) -> list[tuple[int, int, int, int, int]]:
    """A row for each square that is not free, as `take_snapshot` describes it. A block of several owners counts once."""
    manager, size = llm.manager, llm.manager.block_size
    owner: dict[int, int] = {}
    tokens: dict[int, int] = {}
    for index, request in enumerate(llm.scheduler.running):
        for place, block in enumerate(request.block_ids):
            if block < first:  # given back: it lies behind the model's sliding window
                continue
            written = min(size, max(0, request.num_computed_tokens - place * size))
            owner.setdefault(block, index)
            tokens[block] = max(tokens.get(block, 0), written)
    owners: dict[int, Counter[int]] = {}
    written_in: Counter[int] = Counter()
    for block, index in owner.items():
        square = (block - first) // share
        owners.setdefault(square, Counter())[index] += 1
        written_in[square] += tokens[block]
    ids = manager.cached_block_ids
    cached = np.bincount((np.fromiter(ids, dtype=np.int64, count=len(ids)) - first) // share)
    rows = []
    for square in sorted({*owners, *np.flatnonzero(cached).tolist()}):
        held = owners.get(square)
        index = held.most_common(1)[0][0] if held else -1
        kept = int(cached[square]) if square < len(cached) else 0
        in_use = held.total() if held else 0
        rows.append((square, index, in_use, written_in[square], kept))
    return rows


def _row(request: Request) -> tuple[Any, ...]:
    prompt, output = request.num_prompt_tokens, request.num_output_tokens
    return request.request_id, request.index, prompt, output, request.num_computed_tokens
