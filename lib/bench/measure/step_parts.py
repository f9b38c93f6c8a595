"""The parts of one decode step on a CPU: its products, attention, the rest of the model, and the engine around it.

Introduced in chapter 8.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lib.bench.measure.timing import Timing
from lib.engine.llm import LLM
from lib.models.packed import PackedLinear

PARTS = ("products", "attention", "rest of the model", "around the model")


def step_parts(
    llms: Mapping[str, LLM], rows: int, repeats: int, warmup: int = 2
) -> dict[str, dict[str, Timing]]:
    """Seconds of each of PARTS, and of "step", by engine; the engines take turns, step by step.

    llms: engines whose next steps compute `rows` tokens each. The products are timed alone, right after the step that
    they belong to, because in fused layers they are inside of other calls; so is the attention of a step that is one
    call. What the model takes beside them and beside attention is the rest of the model, 0 where that is negative.
    """
    products = {name: _products(llm, rows) for name, llm in llms.items()}
    found = {name: {part: [] for part in (*PARTS, "step")} for name in llms}
    for turn in range(warmup + repeats):
        for name, llm in llms.items():
            seconds = _one_step(llm, products[name])
            if turn >= warmup:
                for part, value in seconds.items():
                    found[name][part].append(value)
    return {
        name: {part: Timing(tuple(values)) for part, values in parts.items()}
        for name, parts in found.items()
    }


def _products(llm: LLM, rows: int) -> list[Callable[[], Any]]:
    if not is_one_call(llm, rows):
        return product_calls(llm.model, rows)
    from lib.bench.measure.fused_step_parts import products_alone

    return [products_alone(llm.runner, rows), product_calls(llm.model.lm_head, rows)[0]]


def is_one_call(llm: LLM, rows: int) -> bool:
    """Whether a step with `rows` tokens runs all layers in one compiled call."""
    return rows <= getattr(llm.runner, "most_rows", 0)


def product_calls(model: nn.Module, rows: int) -> list[Callable[[], Any]]:
    """The products of `rows` tokens with each weight of the model, ready to be called: by the kernel that its step uses."""
    return [
        _product(module, rows, _few_rows(model))
        for module in model.modules()
        if type(module) in (nn.Linear, PackedLinear)
    ]


def _few_rows(model: nn.Module) -> bool:
    return any(
        type(module).__module__.startswith("lib.models.fused.") for module in model.modules()
    )


def _product(module: nn.Module, rows: int, fused: bool) -> Callable[[], Any]:
    if type(module) is nn.Linear:
        x = torch.randn(rows, module.in_features).to(module.weight.dtype)
        return partial(F.linear, x, module.weight, module.bias)
    elements = module.in_features * module.out_features
    dtype = torch.float32 if module.weight_bytes == 4 * elements else torch.bfloat16
    x = torch.randn(rows, module.in_features).to(dtype)
    if fused and module.tiles is not None:
        from lib.models.fused import kernel, layers, ops
        from lib.models.fused.weights import WORTH_THREADS

        if rows <= layers.FEW_ROWS[dtype]:
            out = torch.empty(rows, module.out_features, dtype=dtype)
            bias = ops.floats(torch.empty(0) if module.bias is None else module.bias)
            threads = ops.most_threads() if module.tiles.size >= WORTH_THREADS else 1
            return partial(
                kernel.few_rows_product, ops.array(x), module.tiles, bias, ops.array(out), threads
            )
    return partial(module, x)


@torch.inference_mode()
def _one_step(llm: LLM, products: list[Callable[[], Any]]) -> dict[str, float]:
    with _clocked(llm) as inside:
        step = _seconds([llm.step])
    alone = _seconds(products)
    attention = inside["attention"]
    if is_one_call(llm, len(inside["batch"].slot_mapping)):
        from lib.bench.measure.fused_step_parts import attention_alone

        attention = _seconds([attention_alone(llm.runner, inside["batch"])])
    return {
        "products": alone,
        "attention": attention,
        "rest of the model": max(0.0, inside["model"] - attention - alone),
        "around the model": step - inside["model"],
        "step": step,
    }


def _seconds(calls: list[Callable[[], Any]]) -> float:
    start = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - start


@contextmanager
def _clocked(llm: LLM) -> Iterator[dict[str, Any]]:
    """Seconds spent in the model and, of these, in attention, while the block runs; and the last batch."""
    spent = {"model": 0.0, "attention": 0.0}
    runner = llm.runner
    run, attention = runner.run, runner.attention

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if name == "model":
                spent["batch"] = args[0]
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                spent[name] += time.perf_counter() - start

        return call

    runner.run, runner.attention = timed("model", run), timed("attention", attention)
    try:
        yield spent
    finally:
        del runner.run  # the class's own again
        runner.attention = attention
