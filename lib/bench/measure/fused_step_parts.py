"""The parts of a step that runs in one compiled call, each alone: its products, and its attention.

Introduced in chapter 8.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lib.attention.step_kernel import store_and_attend
from lib.core.batch import Batch
from lib.core.numba_cache import NAN_SAFE, compiled
from lib.engine.fused_step.kernel import INLINED
from lib.engine.fused_step.runner import FusedStepRunner
from lib.models.fused import ops
from lib.models.fused.weights import multiply


@compiled(fastmath=NAN_SAFE, inlined=INLINED)
def _products(weights, num_layers, qkv, proj, wide, down, threads):
    total = np.float32(0)
    for layer in range(num_layers):
        for which in range(4):
            x = qkv if which == 0 else proj if which == 1 else wide if which == 2 else down
            total += multiply(weights, layer, which, x, threads)[0, 0]
    return total  # so that the compiler keeps the products


@compiled(fastmath=NAN_SAFE, inlined=INLINED)
def _attention(num_layers, cache, plan, scratch, q, k, v, y):
    for layer in range(num_layers):
        for t in range(len(plan.slots)):  # the step's own K and V again: the cache stays as it is
            k[t] = cache.keys[layer, plan.slots[t]]
            v[t] = cache.values[layer, plan.slots[t]]
        store_and_attend(cache, layer, q, k, v, plan, scratch, y)


def products_alone(runner: FusedStepRunner, rows: int) -> Callable[[], object]:
    """A call of all layers' products with `rows` rows of inputs, without the head. For float weights in tiles."""
    random = np.random.default_rng(0)
    inputs = [
        random.standard_normal((rows, size)).astype(np.float32) for size in runner.weights.inputs
    ]
    threads, layers = ops.most_threads(), len(runner.model.blocks)
    return lambda: _products(runner.weights, layers, *inputs, threads)


def attention_alone(runner: FusedStepRunner, batch: Batch) -> Callable[[], None]:
    """A call that attends as the step of `batch`, which has just run, did in all layers."""
    layers, work = len(runner.model.blocks), runner.attention_work(batch)
    return lambda: _attention(layers, runner.cache, *work)
