"""Runs one batch through the model. Introduced in chapter 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lib.core.attention import Attention
from lib.core.batch import Batch, Scheduled


class ModelRunner:
    """Holds the model and the attention that goes with its cache. `run(batch) -> logits [N, V]`."""

    def __init__(self, model: nn.Module, attention: Attention) -> None:
        self.model = model.eval()
        self.attention = attention

    def room(self, scheduled: Sequence[Scheduled]) -> None:
        """No particular memory for a step's batch; see `lib.engine.cuda_graphs`."""

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor:
        return self.model(batch, self.attention)
