"""Runs of the real scheduler over a real cache manager, without a model: what each step does with each request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lib.core.request import Request
from lib.core.sampling_params import SamplingParams
from lib.engine.scheduler import Scheduler


@dataclass(frozen=True)
class Arrival:
    """A request. prompt, answer: tokens. step: the first one that can take it, counted from 1."""

    name: str
    prompt: int
    answer: int
    step: int = 1


@dataclass(frozen=True)
class Step:
    """One step, by the requests' names.

    held: block table during the step, or the slot of a contiguous cache. stored: tokens in the cache after it.
    waiting: the queue after the schedule was made. preempted: lost their blocks in this step. ended: got their last
    token in it, and hold nothing after it.
    """

    held: dict[str, list[int]]
    stored: dict[str, int]
    waiting: list[str]
    preempted: list[str]
    ended: list[str]


def play(scheduler: Scheduler, arrivals: Sequence[Arrival]) -> list[Step]:
    """Runs the requests until all have ended. The token that a step would sample is always 0."""
    requests = {
        a.name: Request(
            a.name, [0] * a.prompt, SamplingParams(max_tokens=a.answer, ignore_eos=True)
        )
        for a in arrivals
    }
    steps: list[Step] = []
    while scheduler.has_unfinished or any(a.step > len(steps) for a in arrivals):
        for a in arrivals:
            if a.step == len(steps) + 1:
                scheduler.add(requests[a.name])
        steps.append(_step(scheduler, list(requests.values())))
    return steps


def _step(scheduler: Scheduler, requests: Sequence[Request]) -> Step:
    before = {r: r.metrics.num_preemptions for r in requests}
    scheduled = scheduler.schedule()
    running = [item.request for item in scheduled]
    held = {r.request_id: list(r.block_ids) for r in running}
    waiting = [r.request_id for r in scheduler.waiting]
    completes = [item.request for item in scheduled if item.completes]
    scheduler.update(scheduled)
    stored = {r.request_id: r.num_computed_tokens for r in running}
    for request in completes:
        request.append(0)
    ended = [r for r in completes if r.finished]
    scheduler.release(ended)
    preempted = [r.request_id for r in requests if r.metrics.num_preemptions > before[r]]
    return Step(held, stored, waiting, preempted, [r.request_id for r in ended])
