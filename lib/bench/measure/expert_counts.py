"""Which experts of a mixture a step reads: counted from the routers, and expected by chance. Introduced in chapter 14."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lib.bench.measure import counts
from lib.models.moe import MixtureOfExperts


@contextmanager
def counting_experts(model: nn.Module) -> Iterator[list[tuple[int, int]]]:
    """Within the block, every call of a mixture's experts adds (its tokens, the experts that they chose)."""
    found: list[tuple[int, int]] = []

    def note(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        _, chosen, _ = arguments
        found.append((len(chosen), chosen.unique().numel()))

    mixtures = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    hooks = [mixture.experts.register_forward_pre_hook(note) for mixture in mixtures]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def expected_experts(num_experts: int, num_chosen: int, tokens: int) -> float:
    """Mean number of experts that `tokens` tokens reach if each picks `num_chosen` different ones at random."""
    return num_experts * (1 - (1 - num_chosen / num_experts) ** tokens)


def step_weight_bytes(config: Any, dtype: torch.dtype | str, experts: float) -> float:
    """Weight bytes that a step reads if each mixture reads `experts` of its experts; `config`: a ModelConfig."""
    more = experts - config.num_experts_per_tok
    layers = sum(config.is_moe(layer) for layer in range(config.num_layers))
    size = counts.dtype_bytes(dtype)
    return (
        counts.streamed_bytes(config, dtype) + layers * more * counts.expert_weights(config) * size
    )
