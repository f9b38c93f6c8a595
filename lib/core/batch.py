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

from lib.core.batch_buffer import BatchShape, Room

if TYPE_CHECKING:
    from lib.core.request import Request

_T = TypeVar("_T")


@dataclass(frozen=True)
class Scheduled:
    """What one request does in one step: compute its next `num_tokens` tokens.

    The last of them may be `draft_token_ids`, guesses of what follows the request's tokens:
    `num_tokens` includes them. The step verifies them, and the request keeps those that were right.
    draft_probs [drafts, V]: the distributions that they were sampled from; None: they were not
    sampled, but chosen in a way that has one result only.
    num_prompt_rows: tokens whose logits are needed for `prompt_logprobs`, see `Request.num_prompt_rows`.
    discarded: what the step computes for this request is of no use, see `lib.engine.in_flight`.
    """

    request: Request
    num_tokens: int
    draft_token_ids: Sequence[int] = ()
    draft_probs: Tensor | None = field(default=None, compare=False)
    num_prompt_rows: int = 0
    discarded: bool = False

    @property
    def completes(self) -> bool:
        """Whether all of the request's tokens are computed after this step, so that it has a next one."""
        end = self.request.num_computed_tokens + self.num_tokens
        return end - len(self.draft_token_ids) == self.request.num_tokens

    @property
    def num_rows(self) -> int:
        """Rows of logits, of the last so many tokens.

        Those for `prompt_logprobs`, then one after each draft and one after the token before them. A
        chunk that ends within the prompt has one row at least: its finiteness is checked.
        """
        if not self.num_prompt_rows:
            return 1 + len(self.draft_token_ids)
        if not self.completes:
            return self.num_prompt_rows
        return self.num_prompt_rows + 1 + len(self.draft_token_ids)


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
        # and, where drafts are verified, the `drafts` tokens before it, in order; with
        # prompt_logprobs also the chunk's tokens of the prompt
    )
    block_size: int
    query_lens: list[
        int
    ]  # [B] tokens of this step, host side so that slicing never waits for the device
    kv_lens: list[int]  # [B] seq_lens, host side
    block_ids: list[list[int]]  # [B] the rows of block_table without their padding, host side
    buffer: Tensor | None = None  # the memory of all tensors above, where they share it
    _derived: dict[tuple, Any] = field(default_factory=dict, repr=False)

    def derive(self, function: Callable[..., _T], *args: Any) -> _T:
        """`function(self, *args)`, computed once per step for all layers: masks, plans and the like."""
        key = (function, *args)
        if key not in self._derived:
            self._derived[key] = function(self, *args)
        return self._derived[key]

    @classmethod
    def build(
        cls,
        scheduled: Sequence[Scheduled],
        block_size: int = 1,
        device: torch.device | str = "cpu",
        room: Room | None = None,
    ) -> Batch:
        """Lay the scheduled tokens out flat. `block_size` is 1 and tables are empty where nothing is cached.

        All tensors lie in one buffer, which one copy brings to another device. With `room` they lie
        there, and its rows beyond the batch are padding: the tensors are longer than the lists.
        """
        if not scheduled:
            raise ValueError("a batch needs at least one scheduled request")
        query_lens = [s.num_tokens for s in scheduled]
        starts = [s.request.num_computed_tokens for s in scheduled]
        kv_lens = [start + n for start, n in zip(starts, query_lens)]
        tables = [s.request.block_ids for s in scheduled]
        width = max(map(len, tables), default=0)
        num_rows = sum(s.num_rows for s in scheduled)
        shape = BatchShape(sum(query_lens), len(scheduled), num_rows, width)
        if room is not None:
            shape = room.shape
        pinned = torch.device(device).type == "cuda"  # else the copy would wait for the device
        buffer = torch.empty(shape.num_words, dtype=torch.int32, pin_memory=pinned)
        host = {name: field.numpy() for name, field in shape.views(buffer).items()}
        _lay_out(host, scheduled, block_size, query_lens, starts, kv_lens)
        if room is not None:
            buffer = room.buffer[: shape.num_words].copy_(buffer, non_blocking=True)
        else:
            buffer = buffer.to(device, non_blocking=True)
        return cls(
            **shape.views(buffer),
            block_size=block_size,
            query_lens=query_lens,
            kv_lens=kv_lens,
            block_ids=tables,
            buffer=buffer if room is None else room.buffer,
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


def _lay_out(
    host: dict[str, np.ndarray],
    scheduled: Sequence[Scheduled],
    block_size: int,
    query_lens: list[int],
    starts: list[int],
    kv_lens: list[int],
) -> None:
    """Fill the fields of a batch. Arrays that are longer than the batch end with padding."""
    num_seqs, num_tokens = len(scheduled), sum(query_lens)
    for name in ("input_ids", "positions", "slot_mapping"):
        host[name][num_tokens:] = 0
    host["seq_lens"][:num_seqs] = kv_lens
    host["seq_lens"][num_seqs:] = 1
    host["query_start_loc"][0] = 0
    ends = host["query_start_loc"][1:]
    ends[:num_seqs] = query_lens
    ends[num_seqs:] = 1
    np.cumsum(ends, out=ends)
    block_table = host["block_table"]
    block_table[:] = 0
    for row, item in enumerate(scheduled):
        block_table[row, : len(item.request.block_ids)] = item.request.block_ids
    if num_tokens == num_seqs:  # all decode: no inner loops over tokens
        host["input_ids"][:num_seqs] = [s.request.token_ids[p] for s, p in zip(scheduled, starts)]
        host["positions"][:num_seqs] = starts
        rows = np.arange(num_seqs)
    else:
        host["input_ids"][:] = np.concatenate(
            [
                np.array(s.request.token_ids[a:b] + list(s.draft_token_ids), dtype=np.int64)
                for s, a, b in zip(scheduled, starts, kv_lens)
            ]
        )
        host["positions"][:] = np.concatenate([np.arange(a, b) for a, b in zip(starts, kv_lens)])
        rows = np.repeat(np.arange(num_seqs), query_lens)
    slots, positions = host["slot_mapping"][:num_tokens], host["positions"][:num_tokens]
    if block_table.shape[1]:
        blocks = block_table[rows, positions // block_size].astype(np.int64)
        slots[:] = blocks * block_size + positions % block_size
    else:
        slots[:] = 0
    if len(host["logits_indices"]) > len(ends):
        host["logits_indices"][:] = np.concatenate(
            [np.arange(end - s.num_rows, end) for end, s in zip(ends, scheduled)]
        )
    else:
        host["logits_indices"][:] = ends - 1
