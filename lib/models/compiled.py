"""What a layer does between its matrix products, compiled: fewer and larger operations. Introduced in chapter 8.

Eager PyTorch launches each addition and multiplication by itself, and each reads and writes all of its data. TorchInductor
(Ansel et al. 2024) turns the few lines below into one loop nest each, C++ on a CPU and Triton on a GPU.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.core.attention import Attention
from lib.core.batch import Batch
from lib.models import gpt2, llama, llama_variants, moe


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The residual stream with y added, and its norm for the next product."""
    x = x + y
    return x, F.rms_norm(x, weight.shape, weight, eps)


def split_rotate(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """qkv [T, (Hq + 2 Hkv) D] to rotated q [T, Hq, D] and k [T, Hkv, D], and v [T, Hkv, D]."""
    qk, v = qkv.view(qkv.shape[0], heads + 2 * kv_heads, -1).split(
        (heads + kv_heads, kv_heads), dim=1
    )
    q, k = llama.rotate(qk, cos, sin).split((heads, kv_heads), dim=1)
    return q, k, v


def swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def geglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up


def add_layer_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    x = x + y
    return x, F.layer_norm(x, weight.shape, weight, bias, eps)


class LlamaBlock(llama.Block):
    """`llama.Block` with its parts between the products taken from `ops`. Weights are the given block's own."""

    def __init__(self, block: llama.Block, ops: SimpleNamespace) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(block.__dict__)
        self.ops = ops

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, batch: Batch, attention: Attention
    ) -> Tensor:
        ops, norm = self.ops, self.attention_norm
        qkv = self.qkv(ops.rms_norm(x, norm.weight, norm.eps))
        heads, kv_heads = self.num_heads, self.num_kv_heads
        q, k, v = ops.split_rotate(qkv, cos, sin, heads, kv_heads)
        y = attention(self.layer, q, k, v, batch).reshape(x.shape[0], -1)
        norm = self.mlp_norm
        x, h = ops.add_rms_norm(x, self.proj(y), norm.weight, norm.eps)
        return x + self.down(ops.swiglu(self.gate_up(h)))

    def warm_up(self, tokens: Callable[..., Tensor]) -> None:
        norm, d = self.mlp_norm, self.mlp_norm.weight.shape[0]
        self.ops.rms_norm(tokens(d), norm.weight, norm.eps)
        self.ops.add_rms_norm(tokens(d), tokens(d), norm.weight, norm.eps)
        cos, sin = (tokens(1, self.head_dim // 2) for _ in range(2))
        width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.ops.split_rotate(tokens(width), cos, sin, self.num_heads, self.num_kv_heads)
        self.ops.swiglu(tokens(2 * self.down.in_features))


class _CompiledSplit(llama_variants.VariantBlock):
    """`llama_variants.VariantBlock` with its split of q, k and v taken from `ops`."""

    def __init__(self, block: llama_variants.VariantBlock, ops: SimpleNamespace) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(block.__dict__)
        self.ops = ops

    def split(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, function: Callable[..., Any] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return super().split(qkv, cos, sin, function or self.ops.split_qkv)

    def warm_up(self, tokens: Callable[..., Tensor]) -> None:
        cos, sin = (tokens(1, self.head_dim // 2) for _ in range(2))
        self.split(tokens((self.num_heads + 2 * self.num_kv_heads) * self.head_dim), cos, sin)


class VariantBlock(_CompiledSplit):
    """The same, with its gated MLP taken from `ops` as well."""

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(self._gated(self.gate_up(x)))

    def warm_up(self, tokens: Callable[..., Tensor]) -> None:
        super().warm_up(tokens)
        self._gated(tokens(2 * self.down.in_features))

    @property
    def _gated(self) -> Callable[[Tensor], Tensor]:
        is_gelu = self.activation is llama_variants.gelu_tanh
        return self.ops.geglu if is_gelu else self.ops.swiglu


class MoeBlock(_CompiledSplit, moe.MoeBlock):
    """`moe.MoeBlock`, whose experts are left as they are: their numbers of tokens change with every step."""


class GPT2Block(gpt2.Block):
    """`gpt2.Block`, of which little is left to compile: LayerNorm and GELU are one operation each already."""

    def __init__(self, block: gpt2.Block, ops: SimpleNamespace) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(block.__dict__)
        self.ops = ops

    def forward(self, x: Tensor, batch: Batch, attention: Attention) -> Tensor:
        qkv = self.qkv(self.ln_1(x)).view(x.shape[0], 3, self.num_heads, self.head_dim)
        q, k, v = qkv.unbind(1)
        y = self.proj(attention(self.layer, q, k, v, batch).flatten(1))
        x, h = self.ops.add_layer_norm(x, y, self.ln_2.weight, self.ln_2.bias, self.ln_2.eps)
        return x + self.fc_out(F.gelu(self.fc_in(h), approximate="tanh"))

    def warm_up(self, tokens: Callable[..., Tensor]) -> None:
        norm, d = self.ln_2, self.ln_2.weight.shape[0]
        self.ops.add_layer_norm(tokens(d), tokens(d), norm.weight, norm.bias, norm.eps)


_FAMILIES: dict[type, tuple[type, tuple[Callable[..., Any], ...]]] = {
    llama.Block: (LlamaBlock, (rms_norm, add_rms_norm, split_rotate, swiglu)),
    llama_variants.VariantBlock: (VariantBlock, (llama_variants.split_qkv, swiglu, geglu)),
    moe.MoeBlock: (MoeBlock, (llama_variants.split_qkv,)),
    gpt2.Block: (GPT2Block, (add_layer_norm,)),
}


@torch.inference_mode()
def compile_blocks(model: nn.Module) -> float:
    """Replace the model's blocks in place; returns the seconds of compiling.

    Compiled once for all layers and for any number of tokens; a single token, which
    needs no loop, has a version of its own. Where compiling fails (no C++ compiler,
    say) there is one warning, and the model stays as it is.
    """
    start = time.perf_counter()
    functions = {f for kind in {type(b) for b in model.blocks} for f in _FAMILIES[kind][1]}
    ops = SimpleNamespace(**{f.__name__: torch.compile(_own(f)) for f in functions})
    blocks = [_FAMILIES[type(block)][0](block, ops) for block in model.blocks]
    weight = next(model.parameters())
    # Each kind has its own version.
    kinds = {(type(block), getattr(block, "rotates", True)): block for block in blocks}

    def tokens(n: int, *shape: int) -> Tensor:
        x = torch.zeros(n, *shape, dtype=weight.dtype, device=weight.device)
        if n > 1:
            torch._dynamo.mark_dynamic(x, 0)
        return x

    try:
        # No pool of workers for these few lines.
        with torch._inductor.config.patch(compile_threads=1):
            for n in (1, 8):
                for block in kinds.values():
                    block.warm_up(lambda *shape, n=n: tokens(n, *shape))
    except Exception as error:  # whatever the reason, the model runs without it
        said = [line for line in str(error).splitlines() if line.strip()]
        reason = said[0] if said else type(error).__name__
        warnings.warn(
            f"compile=True runs eagerly, torch.compile does not work: {reason}",
            stacklevel=4,
        )
        return 0.0
    model.blocks = nn.ModuleList(blocks)
    return time.perf_counter() - start


def _own(function: FunctionType) -> FunctionType:
    """A copy with a code object of its own: what Dynamo compiles is kept there, and eight versions are all it keeps."""
    return FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
