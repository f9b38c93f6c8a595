"""Scaled dot-product attention of equally shaped sequences, and the masks that it takes. Introduced in chapter 1."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_len: int,
    mask: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Scaled dot-product attention of equally shaped sequences, with grouped-query heads.

    q [B, query_len, Hq, D]; k, v [B, kv_len, Hkv, D] (any strides). `mask` is an additive float
    or boolean tensor that broadcasts to [B, 1, query_len, kv_len]; without one every key is seen,
    or, where query_len == kv_len, the causal triangle. With `softcap`, a scaled score s becomes
    softcap * tanh(s / softcap). Returns [B, query_len, Hq, D].
    """
    batch, _, heads, size = q.shape
    kv_heads, kv_len = k.shape[2], k.shape[1]
    group = heads // kv_heads
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    if mask is None and query_len > 1:
        # SDPA aligns its triangle to the top left: wrong for a chunk that ends a sequence.
        if query_len != kv_len:
            raise ValueError(
                f"attend needs a mask when query_len ({query_len}) differs from kv_len ({kv_len})"
            )
        if softcap is None:
            out = _sdpa(q.transpose(1, 2), k, v, is_causal=True, enable_gqa=group > 1)
            return out.transpose(1, 2)
        mask = chunk_mask(query_len, kv_len, q)
    # The `group` query heads that share a K/V head become rows of one query, so that K and V are
    # read once for all.
    q = (
        q.view(batch, query_len, kv_heads, group, size)
        .permute(0, 2, 3, 1, 4)
        .reshape(batch, kv_heads, -1, size)
    )
    if mask is not None and query_len > 1 and group > 1:
        mask = mask.repeat(1, 1, group, 1)  # rows run over (group, query)
    out = _sdpa(q, k, v, attn_mask=mask) if softcap is None else _capped(q, k, v, mask, softcap)
    out = out.view(batch, kv_heads, group, query_len, size).permute(0, 3, 1, 2, 4)
    return out.reshape(batch, query_len, heads, size)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """PyTorch's attention, on CUDA without cuDNN's kernels.

    PyTorch prefers those on an H100 in half precision. cuDNN makes a plan for each new shape, which takes
    milliseconds, and a decode step's number of keys is new each time.
    """
    cuda = torch.backends.cuda
    if not (q.is_cuda and cuda.cudnn_sdp_enabled()):
        return F.scaled_dot_product_attention(q, k, v, **options)
    cuda.enable_cudnn_sdp(False)
    try:
        return F.scaled_dot_product_attention(q, k, v, **options)
    finally:
        cuda.enable_cudnn_sdp(True)


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, softcap: float) -> Tensor:
    """Attention with capped scores, step by step: PyTorch's attention cannot cap them."""
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.where(mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1).to(v.dtype) @ v


def chunk_mask(query_len: int, kv_len: int, like: Tensor, window: int | None = None) -> Tensor:
    """Additive mask [1, 1, query_len, kv_len] for queries that are the last `query_len` of `kv_len` positions.

    Each query sees its own position and those before it; with `window`, the last so many of them.
    """
    mask = torch.full((query_len, kv_len), float("-inf"), dtype=like.dtype, device=like.device)
    own = kv_len - query_len  # position of the first query
    later = mask.triu(own + 1)
    if window is not None:
        later += mask.tril(own - window)
    return later[None, None]


def length_mask(
    lengths: Tensor, kv_len: int, window: int | None = None, first: Tensor | int = 0
) -> Tensor:
    """Additive float32 mask [B, 1, 1, kv_len] that shows row b its first `lengths[b]` keys. `lengths` [B] integers.

    With `window`, it shows the last so many of these. The keys are those from position `first` on: a
    number, or [B, 1]. A row of length 0 sees one key that belongs to no sequence: a softmax over
    no keys would be NaN.
    """
    positions = torch.arange(kv_len, device=lengths.device) + first
    ends = lengths[:, None].clamp(min=1 + first)
    hidden = positions >= ends
    if window is not None:
        hidden = hidden | (positions < ends - window)
    return torch.zeros(hidden.shape, device=lengths.device).masked_fill_(hidden, float("-inf"))[
        :, None, None
    ]
