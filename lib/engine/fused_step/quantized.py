"""All layers of a step in one compiled call, for quantised weights. Introduced in chapter 11."""

from __future__ import annotations

from torch import nn

from lib.attention.fused_cpu import CpuFusedAttention
from lib.core.attention import Attention
from lib.core.numba_cache import NAN_SAFE, compiled
from lib.engine.fused_step.kernel import INLINED, layers
from lib.engine.fused_step.runner import FusedStepRunner, float_cache, products
from lib.models.quantized import kernel, round_code, step_weights, tile_code

_MOST_ROWS = 128  # more sequences at once than these kernels were measured with


@compiled(fastmath=NAN_SAFE, inlined=(*INLINED, kernel, round_code, step_weights, tile_code))
def run_quantized_layers(x, weights, small, angles, cache, plan, scratch, q, k, v, y, threads):
    """As `lib.engine.fused_step.kernel.run_layers`; weights: a table of `lib.models.quantized.step_weights`."""
    layers(x, weights, small, angles, cache, plan, scratch, q, k, v, y, threads)


def quantized_step_runner(model: nn.Module, attention: Attention) -> FusedStepRunner | None:
    """A FusedStepRunner for quantised weights; None for other engines."""
    if type(attention) is not CpuFusedAttention:
        return None
    if (weights := step_weights.step_weights(products(model))) is None:
        return None
    cache = float_cache(attention)
    return FusedStepRunner(model, attention, weights, cache, run_quantized_layers, _MOST_ROWS)
