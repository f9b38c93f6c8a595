"""A model's first layers with its norm and head: a smaller model made of the same weights. Introduced in chapter 10."""

from __future__ import annotations

import copy

from torch import nn


def first_layers(model: nn.Module, num_layers: int) -> nn.Module:
    """`model` without its blocks from `num_layers` on; called in the same way. All weights are shared.

    Reading the prediction off an earlier layer needs no training, and works the better the later
    the layer: nostalgebraist 2020 ("the logit lens"), Elhoushi et al. 2024 (LayerSkip). To be
    called after whatever replaces the model's blocks. Raises ValueError unless 1 <= num_layers <
    the model's number of layers.
    """
    if not 1 <= num_layers < len(model.blocks):
        raise ValueError(
            f"speculative_config.draft_layers must be >= 1 and < {len(model.blocks)}, the model's "
            f"number of layers, got {num_layers}"
        )
    early = copy.copy(model)
    early._modules = dict(model._modules)  # else the next line would change the model, too
    early.blocks = model.blocks[:num_layers]
    return early


def bytes_per_pass(model: nn.Module) -> int:
    """Bytes of weights that one pass reads whatever its number of tokens: blocks and head.

    Of a mixture of experts all are counted: more than few tokens read.
    """
    parts = (model.blocks, model.lm_head)
    parameters = sum(x.nbytes for part in parts for x in part.parameters())
    # A weight in another form, such as a packed one, is no parameter: its layer says how large it is.
    other = sum(getattr(x, "weight_bytes", 0) for part in parts for x in part.modules())
    return parameters + other
