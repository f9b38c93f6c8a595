"""The loop at the engine's heart: schedule, build, run, sample, update.

Introduced in chapter 1. Later chapters change the parts (`lib.engine.assemble`), not this loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from lib.core.batch import Batch, Scheduled
from lib.core.errors import InvalidRequest
from lib.core.request import Request
from lib.engine.assemble import EngineParts
from lib.engine.completion_stream import Progress
from lib.engine.request_group import RequestGroup
from lib.engine.step_results import Step, results_of, rows_to_sample
from lib.engine.totals import Totals


class OutputRules(Protocol):
    """What the loop needs of `lib.engine.structured.output_rules`."""

    def masks_meanwhile(self, scheduled: Sequence[Scheduled]) -> AbstractContextManager[None]:
        """A context in which the model runs and the step's masks are computed."""


class StepLoop:
    """Queues requests, computes them step by step, and forgets them. For one thread at a time.

    An exception or an interrupt (KeyboardInterrupt) in a step loses nothing: the next step goes on
    with the same tokens.

    output_rules: prepares masks of the logits (chapter 12).
    """

    def __init__(
        self,
        parts: EngineParts,
        device: torch.device,
        output_rules: OutputRules,
    ) -> None:
        self.device, self.output_rules = device, output_rules
        self.runner, self.scheduler, self.manager = parts.runner, parts.scheduler, parts.manager
        self.kv_cache, self.max_model_len = parts.kv_cache, parts.max_model_len
        self.drafter = parts.drafter  # chapter 10: adds draft tokens to a step's work
        self._sampler = parts.sampler
        self._in_flight = parts.in_flight  # chapter 8: steps that are launched and not yet read
        self._groups: dict[str, RequestGroup] = {}  # unfinished, or finished and not yet handed out
        # ids with something for `step` to hand out, in order
        self._progressed: dict[str, None] = {}
        self._owned: set[str] = set()  # ids that generate or stream waits for
        self._totals = Totals()

    def _step(self) -> list[Request]:
        """Schedule, build, run, sample, update. Returns the requests that have new tokens or have failed."""
        if self._in_flight is None:
            step = self._launch()
        else:
            step = self._in_flight.advance(self._launch, self._restart)
        # None: a `step` that only hands out what `generate` computed on the way
        return [] if step is None else self._complete(step)

    def _launch(self) -> Step | None:
        """Schedule, build, run, sample. None if there is nothing to compute."""
        try:
            scheduled = self.scheduler.schedule()
            if self.drafter is not None:
                scheduled = self.drafter.add_drafts(scheduled)
        except BaseException:
            self._restart()
            raise
        if not scheduled:
            return None
        room = self.runner.room(scheduled)
        batch = Batch.build(scheduled, self.manager.block_size, self.device, room)
        with self.output_rules.masks_meanwhile(scheduled):
            logits = self.runner.run(batch)
        return Step(scheduled, self._sampler.choose(logits, rows_to_sample(scheduled)))

    def _complete(self, step: Step) -> list[Request]:
        """Read a step's tokens and update. Returns the requests that have new tokens or have failed.

        What can fail or be interrupted comes before the first change. The changes themselves can be
        interrupted, too: those to tokens are then done again, and the schedule is made anew.
        """
        streams = [
            None if s.discarded else self._groups[s.request.request_id].streams[s.request.index]
            for s in step.scheduled
        ]
        progress = results_of(step.scheduled, step.chosen, streams)
        totals = self._totals.after(step.num_tokens, progress)
        try:
            self._commit(progress, totals)
            self.scheduler.update(step.scheduled)
            requests = [p.stream.request for p in progress]
            self._release([request for request in requests if request.finished])
            if self._in_flight is not None:
                self._in_flight.completed()
        except BaseException:
            self._commit(progress, totals)  # doing it twice changes nothing
            self._restart()
            raise
        return requests

    def _commit(self, progress: Iterable[Progress], totals: Totals) -> None:
        for item in progress:
            request = item.stream.request
            if not item.finite and self.kv_cache is not None:
                # A step that is in flight has written one token more.
                written = item.position + item.num_drafts + 1
                self.kv_cache.remove_non_finite(request.block_ids, written)
            item.stream.commit(item)
            has_news = item.token_ids or item.finish_reason is not None
            if has_news and request.request_id not in self._owned:
                self._progressed[request.request_id] = None
        self._totals = totals

    def _release(self, requests: list[Request]) -> None:
        """Give back all that ended requests hold."""
        self.scheduler.release(requests)
        if self.drafter is not None:
            for request in requests:
                self.drafter.free(request)

    def _restart(self) -> None:
        """Bring everything into order after an interrupt: see `Scheduler.restart`."""
        if self._in_flight is not None:
            self._in_flight.reset()
        self.scheduler.restart()
        if self.drafter is not None:
            self.drafter.reset()

    def _queue(self, group: RequestGroup, owned: bool = False) -> str:
        if group.request_id in self._groups:
            raise InvalidRequest(
                f"request_id must be new, got {group.request_id!r}, which is still being served",
                param="request_id",
            )
        if owned:
            self._owned.add(group.request_id)
        self._groups[group.request_id] = group
        for request in group.requests:
            self.scheduler.add(request)
        return group.request_id

    def _end(self, groups: Sequence[RequestGroup]) -> None:
        """Forget requests; those that are unfinished are aborted."""
        try:
            if self._in_flight is not None and not all(group.finished for group in groups):
                self._settle()
            self._forget(groups)
        except BaseException:  # interrupted: the rest of it
            self._forget(groups)
            self._restart()
            raise

    def _settle(self) -> None:
        """Read the step in flight: an ended request must not take part in one. It may have ended it."""
        try:
            while (step := self._in_flight.current) is not None:
                self._complete(step)
        except Exception:  # what cannot be read is computed again
            self._restart()

    def _forget(self, groups: Sequence[RequestGroup]) -> None:
        unfinished = [r for group in groups for r in group.requests if not r.finished]
        for request in unfinished:
            request.finish("abort")
            self._totals = self._totals.with_aborted()
        for group in groups:
            self._progressed.pop(group.request_id, None)
            self._owned.discard(group.request_id)
            if self._groups.get(group.request_id) is group:
                del self._groups[group.request_id]
        self._release(unfinished)
