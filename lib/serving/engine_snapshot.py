"""The engine at a glance, for the page: running and waiting sequences, and the owner of each block. Introduced in chapter 5."""

from __future__ import annotations

from itertools import islice
from typing import Any

from lib.core.request import Request
from lib.engine.llm import LLM

_MOST_WAITING = 200  # a page cannot show more; the count is complete


def take_snapshot(llm: LLM) -> dict[str, Any]:
    """Plain data, copied, of this moment. Only the thread that owns the LLM may call it.

    Its size grows with the used and cached blocks.
    """
    scheduler, manager = llm.scheduler, llm.manager
    return {
        "running": [(*_row(r), list(r.block_ids)) for r in scheduler.running],
        "waiting": [_row(r) for r in islice(scheduler.waiting, _MOST_WAITING)],
        "num_waiting": len(scheduler.waiting),
        "blocks_total": manager.num_blocks,
        "blocks_free": manager.num_free_blocks,
        "blocks_cached": list(manager.cached_block_ids),
        "prefix_queries": manager.num_queries,
        "prefix_hits": manager.num_hits,
        "block_size": manager.block_size,
        "first_block": 1 if llm.options.kv_cache == "paged" else 0,  # the null block is nobody's
        "max_num_seqs": scheduler.max_num_seqs,
        "preemptions": scheduler.num_preemptions,
    }


def _row(request: Request) -> tuple[Any, ...]:
    prompt, output = request.num_prompt_tokens, request.num_output_tokens
    return request.request_id, request.index, prompt, output, request.num_computed_tokens
