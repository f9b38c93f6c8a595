"""Runner and KV cache of an engine whose model is divided among ranks. Introduced in chapter 13."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.cache.kv_cache import KVCache
from lib.core.attention import Attention
from lib.core.batch import Batch
from lib.engine.runner import ModelRunner
from lib.engine.tensor_parallel.workers import Workers


class ParallelRunner(ModelRunner):
    """`run(batch) -> logits [N, V]`: sends the batch to the other ranks, then runs rank 0's part."""

    def __init__(self, model: nn.Module, attention: Attention, workers: Workers) -> None:
        super().__init__(model, attention)
        self.workers = workers

    def run(self, batch: Batch) -> Tensor:
        return self.workers.run(batch, super().run)


class ParallelKVCache:
    """The caches of all ranks: each keeps the same blocks, for its own K/V heads."""

    def __init__(self, own: KVCache, workers: Workers) -> None:
        self.own, self.workers = own, workers
        workers.allocate(own.num_blocks, own.block_size)
        self.nbytes = own.nbytes + sum(cache for _, cache in workers.sizes())

    @property
    def num_blocks(self) -> int:
        return self.own.num_blocks

    @property
    def block_size(self) -> int:
        return self.own.block_size

    @property
    def k(self) -> torch.Tensor:
        """Rank 0's keys."""
        return self.own.k

    @property
    def v(self) -> torch.Tensor:
        """Rank 0's values."""
        return self.own.v

    def remove_non_finite(self, block_ids: list[int], num_tokens: int) -> None:
        """See `KVCache.remove_non_finite`: in all ranks."""
        self.own.remove_non_finite(block_ids, num_tokens)
        self.workers.remove_non_finite(block_ids, num_tokens)
