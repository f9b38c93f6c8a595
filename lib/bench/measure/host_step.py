"""What the host does in a decode step, in parts: the engine with a model that takes no time.

Introduced in chapter 8.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PARTS = ("schedule", "build", "sample", "update", "hand out")
_VOCABULARY = 64  # of the made-up logits: small, so that the sampler's operators only start


@contextmanager
def host_clock(llm: Any) -> Iterator[list[float]]:
    """While it lasts, the engine's model returns zeros at once, and the list gets the time of each part's end.

    The list is empty before a step, and holds five times of `time.perf_counter()` after it: of the
    schedule, the batch (with its copy to the device), the sampler's launch, the update (with reading
    the tokens), in this order; `host_parts` adds the ends of the step. llm: an engine without
    asynchronous scheduling (ValueError otherwise) and without speculative decoding.
    """
    if llm.async_scheduling:
        raise ValueError("llm must have async_scheduling False, got True")
    ends: list[float] = []
    replaced = [(llm.scheduler, "schedule"), (llm.runner, "run"), (llm._sampler, "choose")]
    replaced.append((llm, "_complete"))
    real = [getattr(owner, name) for owner, name in replaced]
    schedule, _, choose, complete = real

    def timed(function: Any) -> Any:
        def run(*arguments: Any) -> Any:
            result = function(*arguments)
            ends.append(time.perf_counter())
            return result

        return run

    def no_model(batch: Any) -> torch.Tensor:
        return torch.zeros(len(batch.logits_indices), _VOCABULARY, device=batch.input_ids.device)

    stand_ins = [timed(schedule), timed(no_model), timed(choose), timed(complete)]
    try:
        for (owner, name), stand_in in zip(replaced, stand_ins):
            setattr(owner, name, stand_in)
        yield ends
    finally:
        for owner, name in replaced:
            delattr(owner, name)  # the class's own again


def host_parts(llm: Any, repeats: int) -> dict[str, list[float]]:
    """Seconds of each of PARTS in `repeats` steps of an engine whose requests decode. Nothing may end meanwhile."""
    found: dict[str, list[float]] = {part: [] for part in PARTS}
    with host_clock(llm) as ends:
        for _ in range(repeats):
            ends.clear()
            start = time.perf_counter()
            llm.step()
            times = [start, *ends, time.perf_counter()]
            if len(times) != len(PARTS) + 1:
                raise RuntimeError(f"a step without work: {len(times) - 2} of 4 parts took place")
            for part, before, after in zip(PARTS, times, times[1:]):
                found[part].append(after - before)
    return found
