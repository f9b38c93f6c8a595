"""The interface of every attention implementation. Introduced in chapter 1."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from lib.core.batch import Batch


class Attention(Protocol):
    """Attend within each sequence of a flat batch.

    `layer`: which layer's K and V. `q` [T, Hq, D]; `k`, `v` [T, Hkv, D], this step's tokens only. Returns [T, Hq, D].
    Softmax scale is D ** -0.5. A query sees the keys of its own sequence at its own and earlier positions: all of them,
    or the last `window` ones, its own included. With `softcap`, a scaled score s becomes softcap * tanh(s / softcap).
    Raises ValueError for a `softcap` that an implementation does not have.
    """

    def __call__(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        batch: Batch,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor: ...
