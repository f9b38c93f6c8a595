"""A step's work as one flat list of tokens. `Batch.build` is the only place where host data becomes tensors.

Flat instead of [B, longest]: sequences of different lengths need no padding, and a chunk of a prompt, a decoded token
and a recomputed sequence are the same thing. The field names are vLLM's. Introduced in chapter 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from lib.core.request import Request

_T = TypeVar("_T")


@dataclass(frozen=True)
class Scheduled:
    """What one request does in one step: compute its next `num_tokens` tokens.

    The last of them may be `draft_token_ids`, guesses of what follows the request's tokens:
    `num_tokens` includes them. The step verifies them, and the request keeps those that were right.
    `draft_probs` [drafts, V]: the distributions that they were drawn from; None if they were not
    drawn.
    """

    request: Request
    num_tokens: int
    draft_token_ids: Sequence[int] = ()
    draft_probs: Tensor | None = None

    @property
    def completes(self) -> bool:
        """Whether all of the request's tokens are computed after this step, so that it has a next one."""
        end = self.request.num_computed_tokens + self.num_tokens
        return end - len(self.draft_token_ids) == self.request.num_tokens

    @property
    def num_rows(self) -> int:
        """Rows of logits: one after each draft, and one after the token before them."""
        return 1 + len(self.draft_token_ids)


@dataclass
class Batch:
    """T tokens of B sequences. Tensors lie on the model's device; the lists are their host copies."""

    input_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, position of each token in its sequence
    query_start_loc: Tensor  # [B+1] int32, where each sequence's tokens start in T
    seq_lens: Tensor  # [B] int32, KV length including this step's tokens
    block_table: (
        Tensor  # [B, max_blocks] int32, block ids in sequence order, padded with the null block 0
    )
    slot_mapping: Tensor  # [T] int64, slot that each token's K and V go to
    logits_indices: (
        Tensor  # [N] int64, tokens in T at which the next one is predicted: each sequence's last one
        # and, where drafts are verified, the `drafts` tokens before it, in order
    )
    block_size: int
    query_lens: list[
        int
    ]  # [B] tokens of this step, host side so that slicing never waits for the device
    kv_lens: list[int]  # [B] seq_lens, host side
    block_ids: list[list[int]]  # [B] the rows of block_table without their padding, host side
    _derived: dict[Callable[[Batch], Any], Any] = field(default_factory=dict, repr=False)

    def derive(self, function: Callable[[Batch], _T]) -> _T:
        """`function(self)`, computed once a step however many layers ask: masks, plans and the like."""
        if function not in self._derived:
            self._derived[function] = function(self)
        return self._derived[function]

    @classmethod
    def build(
        cls, scheduled: Sequence[Scheduled], block_size: int = 1, device: torch.device | str = "cpu"
    ) -> Batch:
        """Lay the scheduled tokens out flat. `block_size` is 1 and tables are empty where nothing is cached."""
        if not scheduled:
            raise ValueError("a batch needs at least one scheduled request")
        query_lens = [s.num_tokens for s in scheduled]
        starts = [s.request.num_computed_tokens for s in scheduled]
        kv_lens = [start + n for start, n in zip(starts, query_lens)]
        tables = [s.request.block_ids for s in scheduled]
        block_table = np.zeros((len(scheduled), max(map(len, tables), default=0)), dtype=np.int32)
        for row, table in enumerate(tables):
            block_table[row, : len(table)] = table
        query_start_loc = np.zeros(len(scheduled) + 1, dtype=np.int32)
        np.cumsum(query_lens, out=query_start_loc[1:])
        if max(query_lens) == 1:  # all decode: no inner loops over tokens
            input_ids = np.array(
                [s.request.token_ids[p] for s, p in zip(scheduled, starts)], dtype=np.int64
            )
            positions = np.array(starts, dtype=np.int64)
            rows = np.arange(len(scheduled))
        else:
            input_ids = np.concatenate(
                [
                    np.array(s.request.token_ids[a:b] + list(s.draft_token_ids), dtype=np.int64)
                    for s, a, b in zip(scheduled, starts, kv_lens)
                ]
            )
            positions = np.concatenate([np.arange(a, b) for a, b in zip(starts, kv_lens)])
            rows = np.repeat(np.arange(len(scheduled)), query_lens)
        if block_table.shape[1]:
            slots = (
                block_table[rows, positions // block_size].astype(np.int64) * block_size
                + positions % block_size
            )
        else:
            slots = np.zeros(len(input_ids), dtype=np.int64)
        to = lambda array: torch.from_numpy(array).to(device, non_blocking=True)  # noqa: E731
        return cls(
            input_ids=to(input_ids),
            positions=to(positions),
            query_start_loc=to(query_start_loc),
            seq_lens=to(np.array(kv_lens, dtype=np.int32)),
            block_table=to(block_table),
            slot_mapping=to(slots),
            logits_indices=to(_logits_indices(scheduled, query_start_loc[1:].astype(np.int64))),
            block_size=block_size,
            query_lens=query_lens,
            kv_lens=kv_lens,
            block_ids=tables,
        )

    @classmethod
    def of_prompts(
        cls, prompts: Sequence[Sequence[int]], device: torch.device | str = "cpu"
    ) -> Batch:
        """Whole token sequences, nothing cached: what a first forward pass needs."""
        requests = [
            SimpleNamespace(token_ids=list(p), num_computed_tokens=0, block_ids=[]) for p in prompts
        ]
        return cls.build([Scheduled(r, len(r.token_ids)) for r in requests], device=device)


def _logits_indices(scheduled: Sequence[Scheduled], ends: np.ndarray) -> np.ndarray:
    """[N] the last `num_rows` tokens of each sequence. `ends` [B]: where each sequence ends in T."""
    if not any(s.draft_token_ids for s in scheduled):
        return ends - 1
    rows = [s.num_rows for s in scheduled]
    return np.concatenate([np.arange(end - n, end) for end, n in zip(ends, rows)])
