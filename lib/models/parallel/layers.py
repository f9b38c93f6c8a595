"""The layers of tensor parallelism that communicate. Introduced in chapter 13.

A rank's model is the model itself with fewer heads, features and tokens
(`lib.models.parallel.shard`). Three kinds of layers are replaced: those whose results are sums over
the ranks, the embedding, and the head. A pass has one all-reduce for the embedding, two per block,
and one gather of the logits.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.models.parallel.shard import Shard

_ROW_PARALLEL = ("proj", "down", "fc_out")  # the names in Llama's and GPT-2's blocks


class Communicator(Protocol):
    """What the layers need of the connection between the ranks. All ranks call in the same order."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of all ranks' x, which are of one shape; may overwrite x."""

    def gather(self, x: Tensor) -> list[Tensor] | None:
        """All ranks' x, which are of one shape, in rank 0; None in other ranks."""


class RowParallelLinear(nn.Module):
    """y = sum over ranks of x_r W_r^T, + b: each rank has some of the inputs. x [T, in of this rank]."""

    def __init__(self, linear: nn.Module, communicator: Communicator) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.linear, self.communicator = linear, communicator
        self.bias = linear.bias
        linear.bias = None  # else it would be added once per rank

    def forward(self, x: Tensor) -> Tensor:
        y = self.communicator.all_reduce(self.linear(x))
        return y if self.bias is None else y + self.bias


class VocabParallelEmbedding(nn.Module):
    """Rows of the embedding by token id [T] -> [T, hidden]: each rank has some tokens' rows.

    Tokens of other ranks get rows of zeros, so that the sum over the ranks is exact.
    """

    def __init__(self, embedding: nn.Module, vocabulary: range, communicator: Communicator) -> None:
        super().__init__()
        self.embedding, self.vocabulary, self.communicator = embedding, vocabulary, communicator

    def forward(self, ids: Tensor) -> Tensor:
        local = ids - self.vocabulary.start
        elsewhere = (local < 0) | (local >= len(self.vocabulary))
        rows = self.embedding(local.masked_fill(elsewhere, 0))
        return self.communicator.all_reduce(rows.masked_fill(elsewhere.unsqueeze(1), 0))


class VocabParallelHead(nn.Module):
    """Logits [N, V] in rank 0, which samples; other ranks return their own columns only."""

    def __init__(self, head: nn.Module, sizes: list[int], communicator: Communicator) -> None:
        super().__init__()
        self.head, self.sizes, self.communicator = head, sizes, communicator

    def forward(self, x: Tensor) -> Tensor:
        own = self.head(x)
        padding = max(self.sizes) - own.shape[1]  # a gather needs equal shapes
        parts = self.communicator.gather(F.pad(own, (0, padding)) if padding else own)
        if parts is None:
            return own
        return torch.cat([part[:, :size] for part, size in zip(parts, self.sizes)], dim=1)


def parallelize(
    model: nn.Module, shard: Shard, sizes: list[int], communicator: Communicator
) -> None:
    """Replace the layers of a rank's model, which is filled already, by those that communicate.

    sizes: the number of tokens in each rank's part of the vocabulary.
    """
    for block in model.blocks:
        for name in _ROW_PARALLEL:
            if hasattr(block, name):
                setattr(block, name, RowParallelLinear(getattr(block, name), communicator))
    embedding, head = model.token_embedding, model.lm_head
    model.token_embedding = VocabParallelEmbedding(embedding, shard.vocabulary, communicator)
    model.lm_head = VocabParallelHead(head, sizes, communicator)
