"""Which part of each weight a rank of tensor parallelism holds. Introduced in chapter 13.

Shoeybi et al. 2019 ("Megatron-LM"): a block has two products that need no communication before
them (qkv, and the MLP's first) and two whose results are summed over the ranks (the attention's
output, and the MLP's second). The first two are divided by outputs ("column-parallel"), the other
two by inputs ("row-parallel"), so that what lies between them stays on its rank:

    x -> qkv: heads of this rank -> attention -> proj: inputs of these heads -> all-reduce
    x -> gate, up: features of this rank -> activation -> down: inputs of these features -> all-reduce

Embedding and head are divided by the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib.models.config import ModelConfig

# Quantised weights have one scale per 32, 64 or 128 inputs: the MLP is divided at these boundaries.
_GROUPS = (128, 64, 32)


@dataclass(frozen=True)
class Part:
    """A part of a weight [out, in]: outputs (several ranges are joined) and inputs; None means all."""

    rows: tuple[range, ...] | None = None
    columns: range | None = None


@dataclass(frozen=True)
class Shard:
    """What rank `rank` of `size` holds, as ranges over the whole model's heads, features and tokens.

    heads: query heads. kv_heads: K/V heads, which several ranks hold if there are fewer of them than
    ranks. intermediate: features between the MLP's products. vocabulary: token ids.
    """

    config: ModelConfig  # of the whole model
    rank: int
    size: int
    heads: range
    kv_heads: range
    intermediate: range
    vocabulary: range

    @property
    def local_config(self) -> ModelConfig:
        """The shape of this rank's part: the same model with fewer heads, features and tokens."""
        return replace(
            self.config,
            num_heads=len(self.heads),
            num_kv_heads=len(self.kv_heads),
            intermediate_size=len(self.intermediate),
            vocab_size=len(self.vocabulary),
        )

    def part_of(self, module: str) -> Part:
        """The part of the weight (and bias) of a checkpoint's module; norms and positions are whole."""
        size, width = self.config.head_dim, self.config.num_heads * self.config.head_dim
        q, kv = _times(self.heads, size), _times(self.kv_heads, size)
        # GPT-2's c_attn holds the outputs of q, of k and of v one after the other.
        qkv = tuple(range(n * width + q.start, n * width + q.stop) for n in range(3))
        parts = {
            ".q_proj": Part(rows=(q,)),
            ".k_proj": Part(rows=(kv,)),
            ".v_proj": Part(rows=(kv,)),
            ".o_proj": Part(columns=q),
            ".gate_proj": Part(rows=(self.intermediate,)),
            ".up_proj": Part(rows=(self.intermediate,)),
            ".down_proj": Part(columns=self.intermediate),
            ".c_attn": Part(rows=qkv),
            ".attn.c_proj": Part(columns=q),
            ".c_fc": Part(rows=(self.intermediate,)),
            ".mlp.c_proj": Part(columns=self.intermediate),
            ".embed_tokens": Part(rows=(self.vocabulary,)),
            ".wte": Part(rows=(self.vocabulary,)),
            ".lm_head": Part(rows=(self.vocabulary,)),
        }
        return next((p for end, p in parts.items() if f".{module}".endswith(end)), Part())


def shard_of(config: ModelConfig, rank: int, size: int) -> Shard:
    """The part of rank `rank` of `size`.

    Raises ValueError if a rank would have no query head, for norms over all heads of q and k
    (OLMo-2), which would need a sum over the ranks of their own, and for a mixture of experts.
    Where numbers do not divide evenly, lower ranks hold more: rank 0 never holds less than another.
    """
    for name in ("num_heads", "intermediate_size", "vocab_size"):
        if size > (most := getattr(config, name)):
            raise ValueError(
                f"tensor_parallel_size must be <= {most}, the model's {name}, got {size}"
            )
    if size > 1 and config.qk_norm == "projection":
        raise ValueError(
            "tensor_parallel_size must be 1 for a model that norms q and k over all heads "
            f"({config.architecture}), got {size}"
        )
    if size > 1 and config.num_experts:
        raise ValueError(
            f"tensor_parallel_size must be 1 for a mixture of experts ({config.architecture}), "
            f"got {size}"
        )
    group = config.num_heads // config.num_kv_heads
    if config.num_kv_heads >= size:
        kv_heads = share(config.num_kv_heads, size, rank)
        heads = _times(kv_heads, group)
    else:  # each K/V head is held by several ranks, which divide its query heads
        # The first K/V head has the fewest ranks, so that rank 0 has the most query heads.
        bounds = [size * h // config.num_kv_heads for h in range(config.num_kv_heads + 1)]
        owners = [range(first, last) for first, last in zip(bounds, bounds[1:])]
        head = next(h for h, ranks in enumerate(owners) if rank in ranks)
        kv_heads = range(head, head + 1)
        own = share(group, len(owners[head]), rank - owners[head].start)
        heads = range(head * group + own.start, head * group + own.stop)
    unit = _unit(config.intermediate_size, size)
    intermediate = _times(share(config.intermediate_size // unit, size, rank), unit)
    vocabulary = share(config.vocab_size, size, rank)
    return Shard(config, rank, size, heads, kv_heads, intermediate, vocabulary)


def share(count: int, size: int, rank: int) -> range:
    """Part `rank` of `count` things divided into `size` parts: no two differ by more than one."""
    first, last = (-(-count * n // size) for n in (rank, rank + 1))
    return range(first, last)


def take(weight: Tensor, part: Part) -> Tensor:
    """The part of a weight [out, in] or of a bias or norm [out]; a view where it is one range.

    A bias of a row-parallel layer is whole: it is added once, after the sum over the ranks.
    """
    if part.rows is not None:
        rows = [weight[r.start : r.stop] for r in part.rows]
        weight = rows[0] if len(rows) == 1 else torch.cat(rows)
    if part.columns is not None and weight.dim() == 2:
        weight = weight[:, part.columns.start : part.columns.stop]
    return weight


def _times(parts: range, size: int) -> range:
    return range(parts.start * size, parts.stop * size)


def _unit(features: int, size: int) -> int:
    """Features that stay together: a group of quantised weights where possible, equal numbers per rank if so."""
    whole = [u for u in _GROUPS if features % u == 0 and features // u >= size]
    even = [u for u in whole if features // u % size == 0]
    return (even or whole[-1:] or [1])[0]
