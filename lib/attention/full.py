"""Attention when every step computes all tokens of every sequence: no cache.

Introduced in chapter 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib.attention.sdpa import attend, chunk_mask
from lib.core.batch import Batch


class FullAttention:
    """Causal attention over this step's own keys. Sequences of one length run as one call."""

    def __call__(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        batch: Batch,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        if batch.query_lens != batch.kv_lens:
            raise ValueError(
                "full attention needs whole sequences: query_lens must equal kv_lens, "
                f"got {batch.query_lens} and {batch.kv_lens}"
            )
        out, start, rows = torch.empty_like(q), 0, batch.query_lens
        first = 0
        while first < len(rows):
            last = first  # a run of neighbours of one length needs no padding to become a rectangle
            while last < len(rows) and rows[last] == rows[first]:
                last += 1
            n, tokens = last - first, (last - first) * rows[first]
            q_, k_, v_ = (
                x[start : start + tokens].view(n, rows[first], *x.shape[1:]) for x in (q, k, v)
            )
            mask = None  # where the window is no limit, causality hides all that is to be hidden
            if window is not None and rows[first] > window:
                mask = batch.derive(_window_mask, rows[first], window, q.dtype)
            out[start : start + tokens] = attend(q_, k_, v_, rows[first], mask, softcap).reshape(
                tokens, *q.shape[1:]
            )
            first, start = last, start + tokens
        return out


def _window_mask(batch: Batch, length: int, window: int, dtype: torch.dtype) -> Tensor:
    like = torch.empty(0, dtype=dtype, device=batch.input_ids.device)
    return chunk_mask(length, length, like, window)
