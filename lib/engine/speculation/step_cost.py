"""Time of a step by its number of tokens, measured when the engine is built.

Introduced in chapter 10.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np

from lib.core.batch import Batch, Scheduled
from lib.engine.cuda_graphs import GraphRunner
from lib.engine.runner import ModelRunner

_REPEATS = 3
_LONG = 0.2  # seconds: a step that takes as long is not repeated
_ENOUGH = 9  # tokens: from here on the curve ends at the first step that takes longer than _LONG


class CostCurve:
    """Seconds by number of tokens: linear between the points.

    Beyond the last point the slope is that of the last two, or that of the whole curve if it is
    steeper. More tokens never take less time: a point below an earlier one is noise, and takes its
    value.
    """

    def __init__(self, num_tokens: Sequence[int], seconds: Sequence[float]) -> None:
        if not num_tokens or sorted(set(num_tokens)) != list(num_tokens):
            raise ValueError(f"num_tokens must rise and not be empty, got {num_tokens}")
        if len(seconds) != len(num_tokens) or min(seconds) <= 0:
            raise ValueError(f"seconds must be positive, one per point, got {seconds}")
        self.num_tokens = np.array(num_tokens, dtype=float)
        self.seconds = np.maximum.accumulate(np.array(seconds, dtype=float))

    def __call__(self, num_tokens: np.ndarray | int) -> np.ndarray:
        xs, ys = self.num_tokens, self.seconds
        inside = np.interp(num_tokens, xs, ys)
        if len(xs) == 1:
            return inside
        slope = max((ys[-1] - ys[i]) / (xs[-1] - xs[i]) for i in (0, -2))
        return inside + slope * np.maximum(0, num_tokens - xs[-1])


class StepCost:
    """What a step costs, without drafts and with them.

    decode: a step without drafts; verify: one with drafts. They are the same curve, except where
    decode steps are replayed as CUDA graphs, which steps with drafts are not.
    """

    def __init__(self, verify: CostCurve, decode: CostCurve | None = None) -> None:
        self.verify, self.decode = verify, decode or verify


def measure_step_cost(
    runner: ModelRunner | GraphRunner, block_size: int, most_tokens: int, device: object
) -> StepCost:
    """Time steps of up to `most_tokens` tokens, each with its row of logits.

    It is called before the first request.

    The contexts are short: attention over a long one adds the same to both sides of the comparison
    for which the curve is used. K and V are written to room that no request holds yet.
    """

    def verify(num_tokens: int) -> None:
        # Block ids from 0 for one slot that is as long as a sequence, from 1 for a pool of blocks.
        num_blocks = -(-num_tokens // block_size)
        first = 0 if num_blocks == 1 else 1
        request = _request(1, list(range(first, first + num_blocks)))
        _run(runner, [Scheduled(request, num_tokens, (0,) * (num_tokens - 1))], block_size, device)

    def decode(num_tokens: int) -> None:
        items = [Scheduled(_request(1, [0]), 1) for _ in range(num_tokens)]
        _run(runner, items, block_size, device)

    points = [1, *(1 + 2**i for i in range(20) if 1 + 2**i <= most_tokens)]
    if not isinstance(runner, GraphRunner):
        return StepCost(_curve(verify, points))
    return StepCost(_curve(verify, points), _curve(decode, runner.sizes))


def _request(num_tokens: int, block_ids: list[int]) -> SimpleNamespace:
    return SimpleNamespace(token_ids=[0] * num_tokens, num_computed_tokens=0, block_ids=block_ids)


def _run(
    runner: ModelRunner | GraphRunner, items: list[Scheduled], block_size: int, device: object
) -> None:
    batch = Batch.build(items, block_size, device, runner.room(items))
    runner.run(batch).argmax(-1).tolist()  # waits for the device


def _curve(step: Callable[[int], None], points: Sequence[int]) -> CostCurve:
    """The least of up to three repeats: what disturbs a measurement only adds to it."""
    seconds: list[float] = []
    for num_tokens in points:
        step(num_tokens)  # what is compiled or allocated at first
        times: list[float] = []
        while len(times) < _REPEATS and sum(times) < _LONG:
            start = time.perf_counter()
            step(num_tokens)
            times.append(time.perf_counter() - start)
        seconds.append(min(times))
        if num_tokens >= _ENOUGH and seconds[-1] > _LONG:
            break
    return CostCurve(points[: len(seconds)], seconds)
