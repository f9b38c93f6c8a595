"""Asynchronous scheduling: a step is scheduled and launched before the tokens of the one before it are read.

While the device computes step n, the host prepares step n+1: lengths, blocks and slots do not depend on which
tokens step n chooses, only on how many. The input ids do depend on them; the device copies them from where step n
writes them. Then the host reads step n, with step n+1 already queued behind it, so that the device need not wait.

    host     launch n+1 | read n, update | choose n+1 | launch n+2 | read n+1, update | choose n+2 | ...
    device   model n, tokens n     | model n+1         , tokens n+1            | model n+2 ...

The tokens of step n+1 are chosen after step n has been read, so everything that the sampler knows of a request is
exact: penalties, masks, `min_tokens`, random numbers. When step n+1 is launched, it is known which requests end in
step n by `max_tokens`, but not which end by a stop token or string. A request of the second kind has one superfluous
row in step n+1, which is discarded. So is the row of a request whose token of step n was a late row, one that
`ChosenTokens.read` had to finish; that row is computed again. Blocks of a request that has ended can be reused at once,
since a step that writes to them runs after the one in flight. vLLM V1 does the same (`--async-scheduling`), with the
next input ids copied on the device as well. Introduced in chapter 8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib.core.batch import Batch, Scheduled
from lib.core.request import Request
from lib.engine.cuda_graphs import GraphRunner
from lib.engine.runner import ModelRunner
from lib.engine.sampling import Sampler
from lib.engine.scheduler import Scheduler
from lib.engine.step_results import Step, rows_to_sample


@dataclass(frozen=True)
class _Launched:
    """A step whose model runs, and whose tokens are not chosen yet."""

    scheduled: list[Scheduled]
    logits: Tensor


class StepsInFlight:
    """The steps between launch and reading: `current`, and at most one behind it.

    A request has the state after the last step that was read, as without asynchronous scheduling.
    Only while the next step is scheduled and its batch built does it have the state after `current`.
    tokens_discarded: tokens computed for requests that had ended, or from a wrong input id.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner | GraphRunner,
        sampler: Sampler,
        device: torch.device,
    ) -> None:
        self._scheduler, self._runner, self._sampler = scheduler, runner, sampler
        self._device = device
        self.current: Step | None = None  # its tokens are chosen and on their way to the host
        self._next: _Launched | None = None
        self.tokens_discarded = 0

    def advance(
        self, launch: Callable[[], Step | None], restart: Callable[[], None]
    ) -> Step | None:
        """The step to read now, with the next one launched behind it. None: there is nothing to do.

        launch: schedules and launches a step when none is in flight. restart: brings
        the engine into order after an exception while the next step was scheduled.
        """
        if self.current is None:
            self.current = launch()
        if self.current is not None and self._next is None:
            self._next = self._launch_after(self.current, restart)
        return self.current

    def completed(self) -> None:
        """`current` was read and its requests updated: choose the tokens of the step behind it."""
        launched, step = self._next, None
        if launched is not None:
            late = self._requests_with_late_rows()
            scheduled = [
                replace(s, discarded=True) if s.request.finished or s.request in late else s
                for s in launched.scheduled
            ]
            if not all(item.discarded for item in scheduled):
                step = Step(
                    scheduled, self._sampler.choose(launched.logits, rows_to_sample(scheduled))
                )
            self.tokens_discarded += sum(item.num_tokens for item in scheduled if item.discarded)
        self.current, self._next = step, None

    def reset(self) -> None:
        """Forget the steps in flight; `Scheduler.restart`, which must follow, has them computed again."""
        if self.current is not None:
            for item in self.current.scheduled:
                _remove_placeholder(item.request)
        self.current = self._next = None

    def _launch_after(self, step: Step, restart: Callable[[], None]) -> _Launched | None:
        """Launch the model on the step after `step`.

        None if nothing can be scheduled without preemption. Preemption waits until `step` is
        read: a request that ends in it may free enough blocks.
        """
        try:
            _look_ahead(step.scheduled)
            scheduled = self._scheduler.schedule(may_preempt=False)
            if scheduled:
                room = self._runner.room(scheduled)
                batch = Batch.build(scheduled, self._scheduler.cache.block_size, self._device, room)
                last_ids = [item.request.token_ids[-1] for item in scheduled]
            _look_back(step.scheduled)
        except BaseException:
            restart()
            raise
        if not scheduled:
            return None
        fill_placeholders(batch, last_ids, step.chosen.token_ids)
        return _Launched(scheduled, self._runner.run(batch))

    def _requests_with_late_rows(self) -> set[Request]:
        """Requests whose tokens in `current` were known too late for the input of the next step."""
        late_rows = set(self.current.chosen.late_rows)
        if not late_rows:
            return set()
        return {
            item.request
            for item, end in zip(self.current.scheduled, _row_ends(self.current.scheduled))
            if end - 1 in late_rows
        }


def _row_ends(scheduled: Sequence[Scheduled]) -> list[int]:
    """For each request the row after its last one in the step's logits."""
    ends, end = [], 0
    for item in scheduled:
        end += item.num_rows
        ends.append(end)
    return ends


def _look_ahead(scheduled: Sequence[Scheduled]) -> None:
    """Give the requests of a step that is in flight the state that they will have after it.

    The token that a request will get is not known. A placeholder stands for it: the negative number
    ~row, where row is the row of logits that the token is chosen from. A request that this token ends
    by `max_tokens` gets no placeholder, since nothing is left to compute for it.
    """
    for item, end in zip(scheduled, _row_ends(scheduled)):
        if item.discarded:
            continue
        request = item.request
        request.num_computed_tokens += item.num_tokens
        num_tokens = len(request.token_ids)
        completes = request.num_computed_tokens == num_tokens
        if completes and num_tokens + 1 < request.num_prompt_tokens + request.params.max_tokens:
            request.token_ids.append(~(end - 1))


def _look_back(scheduled: Sequence[Scheduled]) -> None:
    """Undo `_look_ahead`."""
    for item in scheduled:
        if not item.discarded:
            item.request.num_computed_tokens -= item.num_tokens
            _remove_placeholder(item.request)


def _remove_placeholder(request: Request) -> None:
    if request.token_ids[-1] < 0:
        request.token_ids.pop()


@torch.inference_mode()
def fill_placeholders(batch: Batch, last_ids: Sequence[int], token_ids: Tensor) -> None:
    """Replace each ~row in `batch.input_ids` by token_ids[row], on the device: the host does not wait.

    last_ids [B]: the last input id of each sequence, as the host knows it. token_ids [N] int64: what
    the step before chooses. A negative one stands for a token not chosen; it becomes token 0, and the
    result of that row is discarded.
    """
    ids = batch.input_ids
    if min(last_ids) >= 0:
        return
    if len(last_ids) == sum(batch.query_lens) and list(last_ids) == [
        ~r for r in range(len(last_ids))
    ]:
        # All decode, in the order of the step before: one operation.
        torch.clamp(token_ids[: len(last_ids)], min=0, out=ids[: len(last_ids)])
        return
    rows = ids.bitwise_not().clamp_(min=0)
    chosen = token_ids.index_select(0, rows).clamp_(min=0)
    ids.copy_(torch.where(ids < 0, chosen, ids))
