"""What an engine does at each step: which requests hold slots, how many tokens each computes, how long it takes.

Introduced in chapter 3.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lib.bench.measure.timing import synchronize
from lib.bench.workloads import Workload


@dataclass(frozen=True)
class Step:
    """One step. `tokens`, `slots`: by the request's index in its workload. `answered`: requests that got an output token."""

    end: float  # seconds since the first step began
    seconds: float
    tokens: dict[int, int]  # tokens computed
    slots: dict[int, int]  # row that the request occupies, computing or not
    answered: frozenset[int]


@dataclass(frozen=True)
class Trace:
    """A workload's run, step by step. `outputs` are RequestOutputs in the workload's order."""

    num_slots: int
    steps: list[Step]
    outputs: list[Any]

    @property
    def seconds(self) -> float:
        return self.steps[-1].end

    @property
    def output_tokens(self) -> int:
        return sum(len(output.token_ids) for output in self.outputs)

    @property
    def computed_tokens(self) -> int:
        return sum(sum(step.tokens.values()) for step in self.steps)

    @property
    def slot_steps(self) -> int:
        """Slots times steps."""
        return self.num_slots * len(self.steps)

    @property
    def idle_slot_steps(self) -> int:
        """Slot-steps in which nothing was computed."""
        return self.slot_steps - sum(len(step.tokens) for step in self.steps)

    @property
    def throughput(self) -> float:
        """Output tokens per second."""
        return self.output_tokens / self.seconds

    @property
    def ttft(self) -> list[float]:
        """Seconds from arrival to first token, one per request."""
        return [o.metrics.first_token_time - o.metrics.arrival_time for o in self.outputs]

    def gaps(self, request: int) -> list[float]:
        """Seconds between consecutive output tokens of a request, without the wait for the first."""
        times = [step.end for step in self.steps if request in step.answered]
        return [after - before for before, after in zip(times, times[1:])]


def trace(llm: Any, workload: Workload, arrivals: Sequence[int] | None = None) -> Trace:
    """Runs `workload` on an idle engine and records every step.

    `arrivals`: the step before which each request is added, in ascending order; all at once without it. The rows are
    handed out as a contiguous cache hands out slots: the lowest free one first. Raises ValueError for a busy engine, for
    one with a prefix cache, whose requests hold tokens that no step of theirs computed, and for one with asynchronous
    scheduling, whose steps have no end of their own.
    """
    arrivals = [0] * len(workload) if arrivals is None else list(arrivals)
    if len(arrivals) != len(workload) or arrivals != sorted(arrivals):
        raise ValueError(
            f"arrivals must be one step per request, ascending, got {arrivals} for {len(workload)} requests"
        )
    if llm.has_unfinished():
        raise ValueError("llm must have no unfinished requests")
    if llm.options.kv_cache == "paged" and llm.options.enable_prefix_caching:
        raise ValueError("llm must have enable_prefix_caching False, got True")
    if llm.async_scheduling:
        raise ValueError("llm must have async_scheduling False, got True")
    names = [f"{workload.name}/{i}" for i in range(len(workload))]
    index, params = {name: i for i, name in enumerate(names)}, workload.params
    steps: list[Step] = []
    outputs: dict[int, Any] = {}
    rows: dict[int, int] = {}
    free, computed, added = list(range(len(workload))), {}, 0
    start = time.perf_counter()
    while added < len(names) or llm.has_unfinished():
        while added < len(names) and (arrivals[added] <= len(steps) or not llm.has_unfinished()):
            llm.add_request(workload.prompts[added], params[added], names[added])
            added += 1
        begin = time.perf_counter()
        answers = {index[output.request_id]: output for output in llm.step()}
        synchronize(llm.device)
        end = time.perf_counter()
        # A sampled token is computed in the next step: one less than the sequence has.
        held = {i: len(o.prompt_token_ids) + len(o.token_ids) - 1 for i, o in answers.items()}
        held |= {
            index[r.request_id]: r.num_computed_tokens
            for r in llm.scheduler.running
            if index[r.request_id] not in held
        }
        for i in sorted(held.keys() - rows.keys()):
            rows[i] = heapq.heappop(free)
        tokens = {i: n - computed.get(i, 0) for i, n in held.items() if n > computed.get(i, 0)}
        steps.append(
            Step(end - start, end - begin, tokens, {i: rows[i] for i in held}, frozenset(answers))
        )
        outputs |= answers
        # What has finished, or was preempted and will compute everything again, leaves its row.
        computed = {i: n for i, n in held.items() if i not in answers or not answers[i].finished}
        for i in [i for i in rows if i not in computed]:
            heapq.heappush(free, rows.pop(i))
    return Trace(llm.options.max_num_seqs, steps, [outputs[i] for i in range(len(names))])


def static_steps(lengths: Sequence[int], num_slots: int) -> int:
    """Steps of static batching when a request of n output tokens takes n steps: each batch waits for its longest."""
    return sum(max(lengths[i : i + num_slots]) for i in range(0, len(lengths), num_slots))


def continuous_steps(lengths: Sequence[int], num_slots: int) -> int:
    """Steps of continuous batching, as in Graham's list scheduling.

    A slot that falls free takes the next request at once.
    """
    ends = [0] * num_slots
    for n in lengths:
        heapq.heapreplace(ends, ends[0] + n)
    return max(ends)
