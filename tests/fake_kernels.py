"""What the Triton kernels compute, in PyTorch operators: the fake CUDA device counts a launch and does not run it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from lib.attention import choose, fused
from lib.attention.sdpa import attend
from lib.core.batch import Batch
from lib.models.quantized import triton_product
from tests.fake_cuda import FakeCuda


class StandIn:
    """Fused attention: reads nothing but device tensors, as the kernels do."""

    def __init__(self, cache, group=1):
        self.cache = cache

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
        fused.refuse_softcap(softcap)
        self.cache.store(layer, k, v, batch.slot_mapping)
        tokens = torch.arange(len(q), device=q.device, dtype=torch.int32)
        row = torch.searchsorted(batch.query_start_loc[1:], tokens, right=True)
        tables = batch.block_table.index_select(0, row).flatten()
        keys, values = (
            x[layer].index_select(0, tables).view(len(q), -1, *x.shape[3:])
            for x in (self.cache.k, self.cache.v)
        )
        at = torch.arange(keys.shape[1], device=q.device)
        seen = at <= batch.positions[:, None]
        if window is not None:
            seen = seen & (at > batch.positions[:, None] - window)
        # The kernels read no slot that the mask hides, whatever lies there.
        keys, values = (x.where(seen[:, :, None, None], 0.0) for x in (keys, values))
        return attend(q[:, None], keys, values, 1, seen[:, None, None])[:, 0]


def _product(
    x: Tensor,
    words: Tensor,
    scale: Tensor,
    minimum: Tensor | None,
    bits: int,
    zero: int,
    blocks_per_group: int,
    outputs: int,
) -> Tensor:
    """`lib.models.quantized.triton_product.multiply` on the CPU: all weights become floats before one product."""
    tiles, blocks, vectors = words.shape[:3]
    codes = words.permute(0, 3, 1, 2, 4).reshape(tiles * 16, blocks, 4 * vectors)
    if bits == 4:
        codes = torch.cat((codes & 15, codes >> 4), dim=2)
    groups = scale.shape[1]
    weights = (codes.float() - zero).view(tiles, 16, groups, 32 * blocks_per_group)
    weights = weights * scale.transpose(1, 2).float()[..., None]
    if minimum is not None:
        weights = weights + minimum.transpose(1, 2).float()[..., None]
    weights = weights.view(tiles * 16, -1)[:outputs, : x.shape[1]]
    return x.float() @ weights.to(x.dtype).float().T


@contextmanager
def computed_kernels(device: FakeCuda) -> Iterator[None]:
    """Replaces the kernels' callers by the above, in modules that are imported from now on as well."""
    multiply = partial(device.compute, _product)
    with ExitStack() as stack:
        for owner in (choose, fused):
            stack.enter_context(patch.object(owner, "fused_attention", StandIn))
        stack.enter_context(patch.object(triton_product, "multiply", multiply))
        yield
