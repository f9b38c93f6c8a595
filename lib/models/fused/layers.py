"""Layers of Llama and GPT-2 whose parts between the matrix products are fused kernels. Introduced in chapter 8.

Up to FEW_ROWS rows, a layer is two calls, one before attention and one after it, products included; they read the
packed weights in place. With more rows the products are oneDNN's, and only what lies between them is fused.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from lib.core.attention import Attention
from lib.core.batch import Batch
from lib.models import compiled, gpt2, llama
from lib.models.fused import kernel, ops
from lib.models.packed import PackedLinear

FEW_ROWS = 8
_OPS = SimpleNamespace(
    **{
        name: getattr(ops, name)
        for name in ("rms_norm", "add_rms_norm", "split_rotate", "swiglu", "add_layer_norm")
    }
)
_NOTHING = np.empty(0, np.float32)


class FewRowsLinear(nn.Module):
    """A PackedLinear whose product of few rows is a kernel that reads the packed weight at the speed of memory."""

    def __init__(self, linear: PackedLinear) -> None:
        super().__init__()
        self.linear = linear
        self._bias = _floats(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > FEW_ROWS:
            return self.linear(x)
        out = x.new_empty(x.shape[0], self.linear.out_features)
        w = self.linear.tiles
        kernel.few_rows_product(ops.array(x), w, self._bias, ops.array(out), ops.threads(w.size))
        return out


class LlamaBlock(compiled.LlamaBlock):
    """`llama.Block` by fused kernels. Weights are the given block's own."""

    def __init__(self, block: llama.Block) -> None:
        super().__init__(block, _OPS)
        self._few = _FewRows.of(
            block.attention_norm,
            block.qkv,
            block.proj,
            block.mlp_norm,
            block.gate_up,
            block.down,
            heads=(block.num_heads, block.num_kv_heads, block.head_dim),
            gated=True,
        )

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, batch: Batch, attention: Attention
    ) -> Tensor:
        if self._few is None or x.shape[0] > FEW_ROWS:
            return super().forward(x, cos, sin, batch, attention)
        q, k, v = self._few.before_attention(x, ops.array(cos)[:, 0], ops.array(sin)[:, 0])
        return self._few.after_attention(attention(self.layer, q, k, v, batch), x)


class GPT2Block(compiled.GPT2Block):
    """`gpt2.Block` by fused kernels. Weights are the given block's own."""

    def __init__(self, block: gpt2.Block) -> None:
        super().__init__(block, _OPS)
        self._few = _FewRows.of(
            block.ln_1,
            block.qkv,
            block.proj,
            block.ln_2,
            block.fc_in,
            block.fc_out,
            heads=(block.num_heads, block.num_heads, block.head_dim),
            gated=False,
        )

    def forward(self, x: Tensor, batch: Batch, attention: Attention) -> Tensor:
        if self._few is None or x.shape[0] > FEW_ROWS:
            return super().forward(x, batch, attention)
        still = np.empty((x.shape[0], 0), ops.array(x).dtype)  # no rotation
        q, k, v = self._few.before_attention(x, still, still)
        return self._few.after_attention(attention(self.layer, q, k, v, batch), x)


class _FewRows:
    """A layer's weights as the arguments of the kernels for few rows."""

    def __init__(self, norm_1, qkv, proj, norm_2, wide, down, heads, gated) -> None:
        self.heads = heads
        self.before = (*_norm(norm_1), qkv.tiles, _floats(qkv.bias))
        self.after = (
            *(proj.tiles, _floats(proj.bias)),
            *_norm(norm_2),
            *(wide.tiles, _floats(wide.bias)),
            *(down.tiles, _floats(down.bias)),
            down.in_features,
            gated,
        )
        self.sizes = qkv.tiles.size, proj.tiles.size

    @classmethod
    def of(cls, norm_1, qkv, proj, norm_2, wide, down, **shape) -> _FewRows | None:
        """None unless all products are packed in an order that the kernels read."""
        linears = (qkv, proj, wide, down)
        if not all(type(x) is PackedLinear and x.tiles is not None for x in linears):
            return None
        return cls(norm_1, qkv, proj, norm_2, wide, down, **shape)

    def before_attention(
        self, x: Tensor, cos: np.ndarray, sin: np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, (heads, kv_heads, size) = x.shape[0], self.heads
        q, k, v = (x.new_empty(rows, n, size) for n in (heads, kv_heads, kv_heads))
        kernel.few_rows_qkv(
            ops.array(x),
            *self.before,
            cos,
            sin,
            *map(ops.array, (q, k, v)),
            ops.threads(self.sizes[0]),
        )
        return q, k, v

    def after_attention(self, y: Tensor, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        kernel.few_rows_after_attention(
            ops.array(y.reshape(x.shape[0], -1)),
            ops.array(x),
            *self.after,
            ops.array(out),
            ops.threads(self.sizes[1]),
        )
        return out


_FAMILIES = {llama.Block: LlamaBlock, gpt2.Block: GPT2Block}


def fuse_blocks(model: nn.Module) -> int:
    """Replace the model's blocks and its packed head in place; returns how many blocks were.

    To be called after `pack_linears`. A block of another kind stays as it is.
    """
    blocks = [_FAMILIES.get(type(block), lambda b: b)(block) for block in model.blocks]
    fused = sum(a is not b for a, b in zip(blocks, model.blocks, strict=True))
    model.blocks = nn.ModuleList(blocks)
    head = model.lm_head
    if type(head) is PackedLinear and head.tiles is not None:
        model.lm_head = FewRowsLinear(head)
    return fused


def _norm(module: nn.Module) -> tuple[np.ndarray, np.ndarray, float]:
    return ops.floats(module.weight), _floats(getattr(module, "bias", None)), module.eps


def _floats(parameter: Tensor | None) -> np.ndarray:
    return _NOTHING if parameter is None else ops.floats(parameter)
