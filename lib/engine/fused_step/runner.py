"""Runs steps of few rows through all layers in one compiled call. Introduced in chapter 8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from lib.attention import numba_kernel
from lib.attention.fused_cpu import CpuFusedAttention, CpuPlan, attention_plan
from lib.attention.step_kernel import AttentionPlan, AttentionScratch, FloatCache
from lib.core.attention import Attention
from lib.core.batch import Batch, Scheduled
from lib.engine.fused_step.kernel import Angles, SmallWeights, run_layers
from lib.engine.runner import ModelRunner
from lib.models import llama
from lib.models.fused import ops
from lib.models.fused.layers import FEW_ROWS, GPT2Block, LlamaBlock
from lib.models.fused.weights import tile_weights


class FusedStepRunner(ModelRunner):
    """A ModelRunner whose steps of few rows run all layers in one compiled call.

    Other steps run layer by layer: those of more than `most_rows` tokens, and those with a chunk
    that PyTorch attends (`lib.attention.fused_cpu.most_queries`).
    """

    def __init__(
        self,
        model: nn.Module,
        attention: CpuFusedAttention,
        weights: tuple,
        cache: tuple,
        run: Callable[..., None],
        most_rows: int,
    ) -> None:
        super().__init__(model, attention)
        self.weights, self.cache, self.most_rows = weights, cache, most_rows
        self._run = run
        self._small = small_weights(model)
        self._is_llama = isinstance(model, llama.Llama)
        self._final_norm = model.norm if self._is_llama else model.ln_f
        self._kind = ops.array(attention.cache.k[:0]).dtype
        first = model.blocks[0]
        self._heads, self._size = first.num_heads, first.head_dim
        self._kv_heads = getattr(first, "num_kv_heads", first.num_heads)
        if self._is_llama:
            self._tables = model.cos_table.numpy(), model.sin_table.numpy()
        else:
            self._tables = (np.empty((model.config.max_position_embeddings, 0), np.float32),) * 2
        # Numba compiles here, not in the first step.
        self.run(_one_token(attention.cache.block_size))

    def fits(self, batch: Batch) -> bool:
        few = batch.input_ids.shape[0] <= self.most_rows
        return few and not batch.derive(attention_plan, None).chunks

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor:
        if not self.fits(batch):
            return super().run(batch)
        model = self.model
        x = model.token_embedding(batch.input_ids)
        if not self._is_llama:
            x = x + model.position_embedding(batch.positions)
        stream = x.float()
        self.run_layers(stream.numpy(), batch)
        out = stream[batch.logits_indices].to(x.dtype)
        return model.lm_head(self._final_norm(out))

    def run_layers(self, x: np.ndarray, batch: Batch) -> None:
        """x [T, d] float32: the embeddings, and afterwards the output of the last layer."""
        angles = Angles(*self._tables, batch.positions.numpy())
        work = self.attention_work(batch)
        threads = ops.most_threads()
        self._run(x, self.weights, self._small, angles, self.cache, *work, threads)

    def attention_work(self, batch: Batch) -> tuple:
        """Plan, scratch, and memory for q, k, v and y: the arguments of `run_layers` of these names."""
        plan, rows, kind = batch.derive(attention_plan, None), len(batch.slot_mapping), self._kind
        q, y = np.empty((2, rows, self._heads, self._size), kind)
        k, v = np.empty((2, rows, self._kv_heads, self._size), kind)
        shares = plan.shares
        attended = AttentionPlan(
            batch.slot_mapping.numpy(),
            plan.table,
            batch.block_size,
            shares.pieces,
            shares.offsets,
            shares.cuts,
        )
        return attended, _scratch(plan, self._heads, self._size), q, k, v, y


def fused_step_runner(model: nn.Module, attention: Attention) -> FusedStepRunner | None:
    """A FusedStepRunner for float weights in tiles and a paged cache of floats; None for other engines."""
    if type(attention) is not CpuFusedAttention:
        return None
    if (weights := tile_weights(products(model))) is None:
        return None
    dtype = next(model.parameters()).dtype
    cache = float_cache(attention)
    return FusedStepRunner(model, attention, weights, cache, run_layers, FEW_ROWS[dtype])


def products(model: nn.Module) -> list[tuple[nn.Module, ...]]:
    """Each layer's four products, in the order of `lib.models.fused.weights`."""
    names = ("qkv", "proj", "gate_up", "down")
    if isinstance(model.blocks[0], GPT2Block):
        names = ("qkv", "proj", "fc_in", "fc_out")
    return [tuple(getattr(block, name) for name in names) for block in model.blocks]


def float_cache(attention: CpuFusedAttention) -> FloatCache:
    k, v = (
        ops.array(x).reshape(len(x), -1, *x.shape[3:])
        for x in (attention.cache.k, attention.cache.v)
    )
    return FloatCache(k, v)


def small_weights(model: nn.Module) -> SmallWeights:
    """Norms and biases of all layers, copied as float32."""
    blocks, linears = model.blocks, products(model)
    gated = isinstance(blocks[0], LlamaBlock)
    names = ("attention_norm", "mlp_norm") if gated else ("ln_1", "ln_2")
    norms = [[getattr(block, name) for name in names] for block in blocks]
    biases = [stacked([layer[which].bias for layer in linears]) for which in range(4)]
    return SmallWeights(
        np.stack([stacked([norm.weight for norm in pair]) for pair in norms]),
        np.stack([stacked([getattr(norm, "bias", None) for norm in pair]) for pair in norms]),
        *biases,
        float(norms[0][0].eps),
        linears[0][3].in_features,
        gated,
    )


def stacked(vectors: Sequence[Tensor | None]) -> np.ndarray:
    """Vectors [n] as float32 [len(vectors), n]; 0 columns where there are none."""
    if vectors[0] is None:
        return np.empty((len(vectors), 0), np.float32)
    return np.stack([vector.detach().float().numpy() for vector in vectors])


def _scratch(plan: CpuPlan, heads: int, size: int) -> AttentionScratch:
    states, tile = plan.shares.num_states, numba_kernel.QUERY_TILE
    peak, norm = np.empty((2, states, tile, heads), np.float32)
    acc = np.empty((states, tile, heads, size), np.float32)
    scaled = np.empty((len(plan.shares.offsets) - 1, tile, heads, size), np.float32)
    return AttentionScratch(peak, norm, acc, scaled)


def _one_token(block_size: int) -> Batch:
    """A token whose K and V go to the null block."""
    request = SimpleNamespace(token_ids=[0], num_computed_tokens=0, block_ids=[0])
    return Batch.build([Scheduled(request, 1)], block_size)
