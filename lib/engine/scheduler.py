"""Which requests compute how many tokens in the next step: continuous batching. Introduced in chapter 3.

As vLLM V1's scheduler, there are no phases: a request has tokens that are not computed yet, and a step computes some.
Yu et al. 2022 (Orca) admit at every step; Agrawal et al. 2024 (Sarathi-Serve) bound a step by a token budget.
"""

from __future__ import annotations

import time
from collections import deque

from lib.cache.manager import CacheManager
from lib.core.batch import Scheduled
from lib.core.request import Request, Status

# Rows of logits that a step computes for prompt_logprobs: 49,152 float32 each are 100 MB.
MAX_PROMPT_ROWS = 512


class Scheduler:
    """Two queues and a rule. First come, first served: `running` is in order of arrival, so is `waiting`.

    `max_num_seqs`: sequences in a step. `max_num_batched_tokens`: tokens in a step; a prompt that is longer is computed in
    chunks over several steps, and since running sequences are served first they keep decoding meanwhile.
    """

    def __init__(self, cache: CacheManager, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.cache = cache
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.num_preemptions = 0
        self._prompt_rows = MAX_PROMPT_ROWS  # left in the step that is being scheduled
        self._may_preempt, self._num_ending = True, 0  # of that step, too

    @property
    def has_unfinished(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def schedule(self, may_preempt: bool = True) -> list[Scheduled]:
        """The next step's work, in order of arrival. Never empty while anything is unfinished.

        may_preempt False: empty where a sequence would have to be preempted. Running
        requests that have nothing left to compute are left out: an earlier step
        chooses their last token (chapter 8).
        """
        self._prompt_rows = MAX_PROMPT_ROWS
        self._may_preempt, self._num_ending = may_preempt, 0
        scheduled, budget = self._continue_running()
        self._admit(scheduled, budget)
        return scheduled

    def may_admit(self, budget: int) -> bool:
        """Whether to take in one more request, with `budget` tokens of the step left. The static sibling differs here."""
        return budget > 0

    def waits_for_prefix(self, request: Request) -> bool:
        """Whether to leave the request in the queue while a running one computes a prefix that it can share.

        It would compute the same tokens in the meantime. Requests of one prompt (n > 1) arrive together.
        """
        return self.cache.is_computing_prefix_of(request)

    def update(self, scheduled: list[Scheduled]) -> None:
        """Account for a step that ran. What was computed counts only where a cache keeps it.

        With drafts the requests must have their new tokens already: drafts that are not among them
        were rejected and do not count as computed. Their slots are written again by the tokens that
        are there instead; blocks that only drafts needed are given back.
        """
        if self.cache.retains:
            for item in scheduled:
                if item.discarded:
                    continue
                request = item.request
                computed = request.num_computed_tokens + item.num_tokens
                if item.draft_token_ids:  # of the request's tokens only the last is not computed
                    computed = min(computed, request.num_tokens - 1)
                    self.cache.trim(request, computed)
                request.num_computed_tokens = computed
                # After an error its K and V may be wrong: not for others.
                if item.request.finish_reason != "error":
                    self.cache.publish(item.request)

    def release(self, requests: list[Request]) -> None:
        """Take finished or aborted requests out, wherever they are, and give their room back."""
        if not requests:
            return
        for request in requests:
            self.cache.free(request)
        gone = set(map(id, requests))
        self.running = [r for r in self.running if id(r) not in gone]
        if any(id(r) in gone for r in self.waiting):
            self.waiting = deque(r for r in self.waiting if id(r) not in gone)

    def restart(self) -> None:
        """Bring everything into order after a step that was interrupted between two changes.

        The cache is emptied. What is unfinished waits again, in order of arrival, with all of its
        tokens, and is computed anew. Requests are never in neither queue, at most in both.
        """
        requests = dict.fromkeys([*self.running, *self.waiting])
        unfinished = [request for request in requests if not request.finished]
        for request in requests:
            request.num_computed_tokens, request.block_ids = 0, []
        for request in unfinished:
            request.status = Status.WAITING
        self.running, self.waiting = [], deque(unfinished)
        self.cache.reset()

    def check_integrity(self, unfinished: list[Request]) -> None:
        """Raise RuntimeError, saying what is wrong, unless queues and blocks are those of the unfinished requests."""
        queued = [*self.running, *self.waiting]
        if sorted(map(id, queued)) != sorted(map(id, unfinished)):
            raise RuntimeError("the unfinished requests are not those that run or wait, each once")
        for request in self.waiting:
            if request.block_ids or request.num_computed_tokens:
                raise RuntimeError(f"request {request.request_id} waits and holds blocks")
        for request in self.running:
            if request.num_computed_tokens >= request.num_tokens:
                raise RuntimeError(f"request {request.request_id} has nothing left to compute")
        self.cache.check_integrity(queued)

    def _continue_running(self) -> tuple[list[Scheduled], int]:
        scheduled: list[Scheduled] = []
        budget = self.max_num_batched_tokens
        position = 0
        while position < len(self.running) and budget > 0:
            request = self.running[position]
            if request.num_computed_tokens == request.num_tokens:
                self._num_ending += 1
                position += 1
                continue
            num_tokens = self._fit(request, budget, first=not scheduled)
            if num_tokens == 0:
                return scheduled, 0  # the rest of the step is not for those that came later
            if not self._make_room(request, request.num_computed_tokens + num_tokens):
                if not self._may_preempt:
                    return [], 0
                break  # it was the youngest itself, and is waiting again
            scheduled.append(self._scheduled(request, num_tokens))
            budget -= num_tokens
            position += 1
        return scheduled, budget

    def _admit(self, scheduled: list[Scheduled], budget: int) -> None:
        most = self.max_num_seqs + self._num_ending
        while self.waiting and len(self.running) < most and self.may_admit(budget):
            request = self.waiting[0]
            if self.waits_for_prefix(request):
                return
            # Room for all known tokens, not for the first chunk only: a prompt that is let in is
            # never cut off halfway.
            num_cached = self.cache.admit(request)
            if num_cached is None:
                return
            request.num_computed_tokens = num_cached
            if request.num_cached_tokens is None:  # what the first admission found, not a later one
                request.num_cached_tokens = num_cached
            self.running.append(request)  # before it leaves the other queue: see `restart`
            self.waiting.popleft()
            request.status = Status.RUNNING
            if request.metrics.first_scheduled_time is None:
                request.metrics.first_scheduled_time = time.monotonic()
            num_tokens = self._fit(request, budget, first=not scheduled)
            if num_tokens:
                scheduled.append(self._scheduled(request, num_tokens))
            # If it has to wait for a step, those behind it wait with it.
            budget = budget - num_tokens if num_tokens else 0

    def _fit(self, request: Request, budget: int, first: bool) -> int:
        """Tokens of the request that this step computes: all that are missing, or as many as the budget allows."""
        missing = request.num_tokens - request.num_computed_tokens
        if request.lacks_prompt_logprobs and self.cache.retains:
            # One token at least, so that those behind it in the queue are not held up.
            budget = min(budget, max(1, self._prompt_rows))
        if missing <= budget or (first and not self.cache.retains):
            return missing
        return budget if self.cache.retains else 0  # chunks need somewhere to keep the earlier ones

    def _scheduled(self, request: Request, num_tokens: int) -> Scheduled:
        rows = request.num_prompt_rows(num_tokens)
        self._prompt_rows -= rows
        return Scheduled(request, num_tokens, num_prompt_rows=rows)

    def _make_room(self, request: Request, num_tokens: int) -> bool:
        """Allocate, preempting the youngest sequence until it works.

        False if that was the request itself, or if nothing may be preempted.
        """
        while not self.cache.allocate(request, num_tokens):
            if not self._may_preempt:
                return False
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        """Take all of the youngest sequence's room away.

        Its tokens stay; it computes them again when it is let in again.
        """
        self.cache.free(request)
        request.num_computed_tokens = 0
        request.status = Status.WAITING
        request.metrics.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(request)  # before it leaves the other queue: see `restart`
        self.running.pop()
