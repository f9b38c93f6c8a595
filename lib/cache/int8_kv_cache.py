"""K and V in 8 bits, with one scale per token and head. Introduced in chapter 11.

The symmetric form of `lib.models.quantized.rounding`: x is about scale * code, with codes from -127
to 127 and scale = max |x| / 127 over the head_dim elements of one token's K or V in one head. K and
V of a token are rounded when they are stored and never again, so that their codes do not depend on
what is stored later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lib.cache.kv_cache import KVCache, lazy_zeros
from lib.models.config import ModelConfig

LARGEST = 127  # the largest code
_SCALE = torch.float32  # float16 would round the scales of very small or very large numbers


class Int8KVCache(KVCache):
    """A KVCache whose `k` and `v` hold int8 codes; `read` returns floats of type `dtype`.

    `k_scale[layer]`, `v_scale[layer]`: float32 [num_blocks, block_size, Hkv, 1]. Slots, blocks and
    tables are those of `KVCache`.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__(config, num_blocks, block_size, dtype=torch.int8, device=device)
        self.dtype = dtype
        shape = (*self.k.shape[:-1], 1)
        self.k_scale = lazy_zeros(shape, _SCALE, torch.device(device))
        self.v_scale = lazy_zeros(shape, _SCALE, torch.device(device))
        self._slots = [
            (self._k_slots, [layer.flatten(0, 1) for layer in self.k_scale]),
            (self._v_slots, [layer.flatten(0, 1) for layer in self.v_scale]),
        ]

    def store(self, layer: int, k: Tensor, v: Tensor, slot_mapping: Tensor) -> None:
        """Round this step's k and v [T, Hkv, D] and write codes and scales to their slots [T]."""
        for x, (codes, scales) in zip((k, v), self._slots):
            code, scale = round_heads(x)
            codes[layer].index_copy_(0, slot_mapping, code)
            scales[layer].index_copy_(0, slot_mapping, scale)

    def read(self, layer: int, select: Callable[..., Tensor], *which: Any) -> tuple[Tensor, Tensor]:
        """What `select` takes of a layer's K and V, as floats: always a copy."""
        keys, values = (
            self._floats(select(codes[layer], *which), select(scales[layer], *which))
            for codes, scales in ((self.k, self.k_scale), (self.v, self.v_scale))
        )
        return keys, values

    def as_stored(
        self, layer: int, k: Tensor, v: Tensor, slot_mapping: Tensor
    ) -> tuple[Tensor, Tensor]:
        """k and v read back from their slots: this step attends to what later ones will read."""
        k, v = (
            self._floats(codes[layer][slot_mapping], scales[layer][slot_mapping])
            for codes, scales in self._slots
        )
        return k, v

    def remove_non_finite(self, block_ids: list[int], num_tokens: int) -> None:
        """See `KVCache`. A scale that is not finite, as NaN or infinity give it, becomes 0."""
        for scale in (self.k_scale, self.v_scale):
            for number, block in enumerate(block_ids):
                written = max(0, num_tokens - number * self.block_size)
                scale[:, block, :written].nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)

    @property
    def nbytes(self) -> int:
        return super().nbytes + self.k_scale.nbytes + self.v_scale.nbytes

    def _floats(self, codes: Tensor, scales: Tensor) -> Tensor:
        return (codes * scales).to(self.dtype)


def round_heads(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 [T, Hkv, D] and scales float32 [T, Hkv, 1] of x [T, Hkv, D], of any float type.

    The error of an element is at most half a scale, apart from float32 rounding. Codes are 0 where
    the scale is 0 or subnormal (all elements are then below 2e-36), and where it is not finite
    because an element is not: such a scale times 0 is NaN, so that the error stays visible.
    """
    x = x.to(_SCALE)
    scale = x.abs().amax(-1, keepdim=True) * (1 / LARGEST)
    usable = (scale >= torch.finfo(_SCALE).tiny) & scale.isfinite()
    codes = (x * (1 / scale)).round_().where(usable, 0.0)
    return codes.to(torch.int8), scale


def int8_kv_bytes_per_token(config: ModelConfig) -> int:
    """Bytes of one token's codes and scales in all layers."""
    heads = 2 * config.num_layers * config.num_kv_heads
    return heads * (config.head_dim + _SCALE.itemsize)
