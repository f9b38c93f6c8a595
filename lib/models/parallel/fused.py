"""Fused kernels for the products of a rank's part. Introduced in chapter 13.

Chapter 8's kernels for few rows compute a whole layer in two calls. With tensor parallelism a sum over
the ranks comes between two products, so each product is a call of its own.
"""

from __future__ import annotations

from torch import nn

from lib.models.fused.layers import FewRowsLinear
from lib.models.packed import PackedLinear


def fuse_products(model: nn.Module) -> int:
    """Give packed linear layers the kernel for few rows, in place; returns how many have it.

    To be called after `lib.models.fused.choose.fuse_layers`.
    """
    fused = 0
    for parent in [m for m in model.modules() if not isinstance(m, FewRowsLinear)]:
        for name, child in list(parent.named_children()):
            if type(child) is PackedLinear and child.tiles is not None:
                setattr(parent, name, FewRowsLinear(child))
                fused += 1
    return fused
