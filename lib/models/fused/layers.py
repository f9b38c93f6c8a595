"""Layers of Llama and GPT-2 whose parts between the matrix products are fused kernels. Introduced in chapter 8.

Up to FEW_ROWS rows a layer is two calls, one before attention and one after it, products included; they read the
packed weights in place. With more rows, or where a weight is not in packed tiles, PyTorch and oneDNN compute the
products, and only what lies between them is fused. `lib.engine.fused_step` computes all of these layers in one call
where it can.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from lib.core.attention import Attention
from lib.core.batch import Batch
from lib.core.numba_cache import start_threads
from lib.models import compiled, gpt2, llama
from lib.models.fused import kernel, ops
from lib.models.fused.weights import WORTH_THREADS
from lib.models.packed import PackedLinear

# Most rows for which the kernel that reads packed weights is faster than oneDNN's: measured in turns, in whole steps
# of SmolLM2, on one core of an AMD EPYC with AVX-512. With more rows arithmetic is the limit. For bfloat16, oneDNN uses
# the processor's bfloat16 instructions where there are any; this kernel computes in float32.
FEW_ROWS = {torch.float32: 32, torch.bfloat16: 16}
_OPS = SimpleNamespace(
    **{
        name: getattr(ops, name)
        for name in ("rms_norm", "add_rms_norm", "split_rotate", "swiglu", "add_layer_norm")
    }
)
_NOTHING = np.empty(0, np.float32)


class FewRowsLinear(nn.Module):
    """A PackedLinear that computes products of few rows by a kernel that reads the packed weight in place."""

    def __init__(self, linear: PackedLinear) -> None:
        super().__init__()
        self.linear = linear
        self._bias = _floats(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > FEW_ROWS[x.dtype]:
            return self.linear(x)
        out = x.new_empty(x.shape[0], self.linear.out_features)
        w = self.linear.tiles
        x = ops.array(x.contiguous())
        kernel.few_rows_product(x, w, self._bias, ops.array(out), ops.threads(w.size))
        return out


class LlamaBlock(compiled.LlamaBlock):
    """`llama.Block` with fused kernels. Shares the weights of the given block."""

    has_fused_kernels = True

    def __init__(self, block: llama.Block, buffers: _Buffers) -> None:
        super().__init__(block, _OPS)
        self._few = _FewRows.of(
            block.attention_norm,
            block.qkv,
            block.proj,
            block.mlp_norm,
            block.gate_up,
            block.down,
            buffers=buffers,
            gated=True,
        )

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, batch: Batch, attention: Attention
    ) -> Tensor:
        if self._few is None or x.shape[0] > FEW_ROWS[x.dtype]:
            return super().forward(x, cos, sin, batch, attention)
        angles = ops.array(cos)[:, 0], ops.array(sin)[:, 0]
        threads = batch.derive(_threads)
        q, k, v = self._few.before_attention(x, *angles, threads)
        return self._few.after_attention(attention(self.layer, q, k, v, batch), x, threads)

    def warm_up(self, tokens: Callable[..., Tensor]) -> None:
        super().warm_up(tokens)
        if self._few is not None:
            angles = ops.array(tokens(self.head_dim // 2))
            self._few.warm_up(tokens, angles)


class GPT2Block(compiled.GPT2Block):
    """`gpt2.Block` with fused kernels. Shares the weights of the given block."""

    has_fused_kernels = True

    def __init__(self, block: gpt2.Block, buffers: _Buffers) -> None:
        super().__init__(block, _OPS)
        self._few = _FewRows.of(
            block.ln_1,
            block.qkv,
            block.proj,
            block.ln_2,
            block.fc_in,
            block.fc_out,
            buffers=buffers,
            gated=False,
        )

    def forward(self, x: Tensor, batch: Batch, attention: Attention) -> Tensor:
        if self._few is None or x.shape[0] > FEW_ROWS[x.dtype]:
            return super().forward(x, batch, attention)
        no_angles = np.empty((x.shape[0], 0), ops.array(x).dtype)
        threads = batch.derive(_threads)
        q, k, v = self._few.before_attention(x, no_angles, no_angles, threads)
        return self._few.after_attention(attention(self.layer, q, k, v, batch), x, threads)

    def warm_up(self, tokens: Callable[..., Tensor]) -> None:
        super().warm_up(tokens)
        if self._few is not None:
            self._few.warm_up(tokens, ops.array(tokens(0)))


class _Buffers:
    """q [T, Hq, D], k and v [T, Hkv, D] of few rows, allocated once: a model's layers use them one after the other."""

    def __init__(self, heads: int, kv_heads: int, size: int) -> None:
        self._shapes = ((heads, size), (kv_heads, size), (kv_heads, size))
        self._held: dict[int, tuple[list[Tensor], list[np.ndarray]]] = {}

    def of(self, x: Tensor) -> tuple[list[Tensor], list[np.ndarray]]:
        """The tensors for the rows of x, and the same memory as arrays."""
        if (rows := x.shape[0]) not in self._held:
            tensors = [x.new_empty(rows, *shape) for shape in self._shapes]
            self._held[rows] = tensors, [ops.array(t) for t in tensors]
        return self._held[rows]


class _FewRows:
    """A layer's weights as the arguments of the kernels for few rows."""

    def __init__(self, norm_1, qkv, proj, norm_2, wide, down, buffers, gated) -> None:
        self.buffers = buffers
        self.before = (*_norm(norm_1), qkv.tiles, _floats(qkv.bias))
        self.after = (
            *(proj.tiles, _floats(proj.bias)),
            *_norm(norm_2),
            *(wide.tiles, _floats(wide.bias)),
            *(down.tiles, _floats(down.bias)),
            down.in_features,
            gated,
        )
        self.width = down.out_features
        self.worth_threads = qkv.tiles.size >= WORTH_THREADS

    @classmethod
    def of(cls, norm_1, qkv, proj, norm_2, wide, down, **shape) -> _FewRows | None:
        """None unless all products are packed in an order that the kernels read."""
        linears = (qkv, proj, wide, down)
        if not all(type(x) is PackedLinear and x.tiles is not None for x in linears):
            return None
        return cls(norm_1, qkv, proj, norm_2, wide, down, **shape)

    def before_attention(
        self, x: Tensor, cos: np.ndarray, sin: np.ndarray, threads: int
    ) -> list[Tensor]:
        qkv, arrays = self.buffers.of(x)
        kernel.few_rows_qkv(
            ops.array(x), *self.before, cos, sin, *arrays, threads if self.worth_threads else 1
        )
        return qkv

    def warm_up(self, tokens: Callable[..., Tensor], angles: np.ndarray) -> None:
        x = tokens(self.width)
        y, _, _ = self.before_attention(x, angles, angles, 1)
        self.after_attention(y, x, 1)

    def after_attention(self, y: Tensor, x: Tensor, threads: int) -> Tensor:
        out = torch.empty_like(x)
        kernel.few_rows_after_attention(
            ops.array(y.reshape(x.shape[0], -1).contiguous()),
            ops.array(x),
            *self.after,
            ops.array(out),
            threads if self.worth_threads else 1,
        )
        return out


_FAMILIES = {llama.Block: LlamaBlock, gpt2.Block: GPT2Block}


def fuse_blocks(model: nn.Module) -> int:
    """Replace blocks of `model` in place, after `pack_linears`; returns how many it replaced.

    Other packed layers, such as the head and those in blocks of other families, get the kernel
    for few rows. One call of each kernel makes Numba compile it here, not in the first step.
    """
    start_threads()
    fused = [block for block in model.blocks if type(block) in _FAMILIES]
    if fused:
        first = fused[0]
        kv_heads = getattr(first, "num_kv_heads", first.num_heads)  # GPT-2 has as many
        buffers = _Buffers(first.num_heads, kv_heads, first.head_dim)
        model.blocks = nn.ModuleList(
            _FAMILIES[type(block)](block, buffers) if type(block) in _FAMILIES else block
            for block in model.blocks
        )
    for parent in list(model.modules()):
        if not isinstance(parent, (*_FAMILIES.values(), FewRowsLinear)):
            for name, child in list(parent.named_children()):
                if type(child) is PackedLinear and child.tiles is not None:
                    setattr(parent, name, FewRowsLinear(child))
    _warm_up(model)
    return len(fused)


@torch.inference_mode()
def _warm_up(model: nn.Module) -> None:
    weight = next(model.parameters())
    block = model.blocks[0]
    if isinstance(block, tuple(_FAMILIES.values())):
        block.warm_up(lambda *shape: weight.new_zeros(1, *shape))
    for layer in model.modules():
        if isinstance(layer, FewRowsLinear):
            layer(weight.new_zeros(1, layer.linear.in_features))
            break


def _threads(batch: Batch) -> int:
    """Threads for a step's kernels. Computed once per step, since asking Numba takes microseconds."""
    return ops.most_threads()


def _norm(module: nn.Module) -> tuple[np.ndarray, np.ndarray, float]:
    return ops.floats(module.weight), _floats(getattr(module, "bias", None)), module.eps


def _floats(parameter: Tensor | None) -> np.ndarray:
    return _NOTHING if parameter is None else ops.floats(parameter)
