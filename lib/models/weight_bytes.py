"""Bytes of a model's weights. Introduced in chapter 1."""

from __future__ import annotations

from torch import nn


def weight_bytes(model: nn.Module) -> int:
    """Bytes that the model's weights take, in whatever form they are kept; shared ones count once."""
    # A weight in another form, such as a packed one, is no parameter: its layer says how large it is.
    other = sum(getattr(module, "weight_bytes", 0) for module in model.modules())
    return other + sum(parameter.nbytes for parameter in model.parameters())
