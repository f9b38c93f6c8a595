"""The engine as its users see it, and the loop at its heart: schedule, build, run, sample, update.

Introduced in chapter 1. Later chapters change the parts (`lib.engine.assemble`), not this loop.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lib.core.batch import Batch
from lib.core.device import pick_device, pick_dtype
from lib.core.engine_options import EngineOptions
from lib.core.errors import InvalidRequest
from lib.core.outputs import Chunk, RequestOutput
from lib.core.request import Request
from lib.core.sampling_params import SamplingParams
from lib.engine.assemble import assemble, load, output_rules, start_workers
from lib.engine.completion_stream import Progress
from lib.engine.new_requests import make_group
from lib.engine.one_thread import OneThread
from lib.engine.prompts import chat_token_ids
from lib.engine.request_group import RequestGroup
from lib.engine.step_results import Step, results_of, rows_to_sample
from lib.engine.totals import Totals
from lib.models.weight_bytes import weight_bytes

Prompt = str | Sequence[int]


class LLM:
    """A model and an engine around it. It serves one thread at a time: RuntimeError for a second one.

    Its arguments are the fields of `lib.core.engine_options.EngineOptions`, where each is documented.
    Raises ValueError for arguments that are out of range, do not go together or do not fit into
    memory. An exception or an interrupt (KeyboardInterrupt) in a step loses nothing: the next step
    goes on with the same tokens.
    """

    __signature__ = inspect.signature(EngineOptions)

    def __init__(self, model: str | Path = "smollm2", **options: Any) -> None:
        self.options = EngineOptions(model, **options)
        self.device = pick_device(self.options.device)
        self.dtype = pick_dtype(self.options.dtype, self.device)
        self.workers = start_workers(self.options, self.device)  # chapter 13: None for one process
        try:
            loaded = load(self.options, self.device, self.dtype, self.workers)
            self.model, self.tokenizer, self.weights = (
                loaded.model,
                loaded.tokenizer,
                loaded.weights,
            )
            self.config, self.folder = loaded.config, loaded.folder
            self.output_rules = output_rules(self.tokenizer, self.config)
            engine = assemble(
                self.model, self.options, self.device, self.dtype, self.tokenizer, self.workers
            )
            elsewhere = [] if self.workers is None else self.workers.sizes()
        except BaseException:
            self.close()
            raise
        self.runner, self.scheduler, self.manager = engine.runner, engine.scheduler, engine.manager
        self.kv_cache, self.max_model_len = engine.kv_cache, engine.max_model_len
        self.drafter = engine.drafter  # chapter 10: adds draft tokens to a step's work
        self.draft_kv_cache_bytes = engine.draft_kv_cache_bytes
        self.compile_seconds = engine.compile_seconds  # 0 where nothing was compiled
        self.packed_linears = engine.packed_linears
        self.fused_blocks = engine.fused_blocks
        own = weight_bytes(self.model)
        self.weight_bytes_by_rank = [own, *(weights for weights, _ in elsewhere)]
        self.weight_bytes = sum(self.weight_bytes_by_rank)
        self._groups: dict[str, RequestGroup] = {}  # unfinished, or finished and not yet handed out
        self._progressed: dict[
            str, None
        ] = {}  # ids with something for `step` to hand out, in order
        self._owned: set[str] = set()  # ids that generate or stream waits for
        self._one_thread = OneThread()
        self._ids = itertools.count()
        self._totals = Totals()
        self._sampler = engine.sampler
        self._in_flight = engine.in_flight  # chapter 8: steps that are launched and not yet read

    # Requests in, outputs out. What `generate` and `stream` queue is theirs: `step` runs it and leaves its outputs alone.

    def add_request(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        request_id: str | None = None,
        cache_salt: str | None = None,
    ) -> str:
        """Queue a prompt; returns its id. Raises InvalidRequest, and queues nothing, if it can never be served.

        `params` is copied: what becomes of the caller's object afterwards has no effect.
        `cache_salt`: the prompt shares cached prefixes with prompts of the same salt only.
        """
        with self._one_thread:
            return self._queue(self._make_group(prompt, params, request_id, cache_salt))

    @property
    def async_scheduling(self) -> bool:
        """Whether `step` launches the next step before it reads this one (chapter 8)."""
        return self._in_flight is not None

    def has_unfinished(self) -> bool:
        """Whether `step` has anything left to do or to hand out."""
        return self.scheduler.has_unfinished or bool(self._progressed)

    def step(self) -> list[RequestOutput]:
        """One pass through the model. Returns the outputs of requests that progressed or ended."""
        with self._one_thread:
            self._step()
            outputs = [self._groups[request_id].output() for request_id in self._progressed]
            for output in outputs:  # nothing below can fail: what is not marked comes again
                self._groups[output.request_id].mark_delivered()
                if output.finished:
                    del self._groups[output.request_id]
                del self._progressed[output.request_id]
            return outputs

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request now, whatever its state, and free its room. Returns its output, or None if there is none."""
        with self._one_thread:
            group = self._groups.get(request_id)
            if group is None:
                return None
            self._end([group])
            return group.output()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = False,
        cache_salt: str | None = None,
    ) -> list[RequestOutput]:
        """Complete one prompt or many; outputs in the prompts' order. `params`: one for all, or one per prompt.

        `cache_salt`: of all prompts, as in `add_request`.
        """
        if isinstance(prompts, str) or (
            len(prompts) > 0 and all(isinstance(p, Integral) for p in prompts)
        ):
            prompts = [prompts]
        if not isinstance(params, Sequence):
            params = [params] * len(prompts)
        if len(params) != len(prompts):
            raise InvalidRequest(
                f"params must be one or one per prompt, got {len(params)} for {len(prompts)} prompts",
                param="params",
            )
        with self._one_thread:
            # All are checked before the first is queued: an error leaves nothing behind.
            groups = [self._make_group(p, s, None, cache_salt) for p, s in zip(prompts, params)]
            try:
                for group in groups:
                    self._queue(group, owned=True)
                with tqdm(total=len(groups), disable=not use_tqdm, unit="prompt") as bar:
                    unfinished = {group.request_id: group for group in groups}
                    while unfinished:
                        for request_id in {request.request_id for request in self._step()}:
                            if request_id in unfinished and unfinished[request_id].finished:
                                del unfinished[request_id]
                        bar.update(len(groups) - len(unfinished) - bar.n)
                return [group.output() for group in groups]
            finally:
                self._end(groups)

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, cache_salt: str | None = None
    ) -> Iterator[Chunk]:
        """Complete one prompt and yield what is new after each step. Closing the iterator ends the request."""
        return self._chunks(
            self._make_group(prompt, params, None, cache_salt)
        )  # checked now, queued at the first `next`

    def chat(
        self,
        messages: Sequence[Any],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = False,
        cache_salt: str | None = None,
    ) -> list[RequestOutput]:
        """`generate` for one conversation, a list of {"role", "content"}, or a list of conversations."""
        conversations = [messages] if messages and isinstance(messages[0], dict) else list(messages)
        return self.generate(
            [chat_token_ids(self.tokenizer, c) for c in conversations],
            params,
            use_tqdm,
            cache_salt,
        )

    def reset_prefix_cache(self) -> None:
        """Forget all cached blocks that no running request uses, e.g. between two measurements."""
        with self._one_thread:
            try:
                self.manager.forget_cached()
                if self.drafter is not None:
                    self.drafter.forget_cached()
            except BaseException:  # interrupted
                self._restart()
                raise

    def stats(self) -> dict[str, Any]:
        """Counts of this moment, and since the start: preemptions, and the fields of `lib.engine.totals.Totals`."""
        manager, totals = self.manager, self._totals
        return {
            "running": len(self.scheduler.running),
            "waiting": len(self.scheduler.waiting),
            "blocks_total": manager.num_blocks,
            "blocks_free": manager.num_free_blocks,
            "blocks_cached": manager.num_cached_blocks,
            "block_size": manager.block_size,
            "prefix_queries": manager.num_queries,
            "prefix_hits": manager.num_hits,
            "evictions": manager.num_evictions,
            "preemptions": self.scheduler.num_preemptions,
            "steps": totals.steps,
            "tokens_computed": totals.tokens_computed,
            "tokens_discarded": self._in_flight.tokens_discarded if self._in_flight else 0,
            "requests_finished": totals.requests_finished,
            "num_drafts": totals.num_drafts,
            "draft_tokens": totals.draft_tokens,
            "accepted_tokens": totals.accepted_tokens,
            "accepted_by_position": list(totals.accepted_by_position),
            "mean_accepted_length": totals.mean_accepted_length,
            "kv_cache_bytes": self.kv_cache.nbytes if self.kv_cache else 0,
            "weight_bytes": self.weight_bytes,
            "weight_bytes_by_rank": list(self.weight_bytes_by_rank),
            "draft_kv_cache_bytes": self.draft_kv_cache_bytes,
            "max_model_len": self.max_model_len,
            "packed_linears": self.packed_linears,
            "fused_blocks": self.fused_blocks,
        }

    def close(self) -> None:
        """End the processes of other ranks, if any: a later step raises EngineDeadError. May be repeated.

        Without a call they end with this object or with this process.
        """
        if self.workers is not None:
            self.workers.close()

    def check_integrity(self) -> None:
        """Raise RuntimeError, saying what is wrong, unless the engine's books balance. For tests, between steps."""
        groups = self._groups.values()
        for group in groups:
            if group.finished and group.request_id not in {*self._progressed, *self._owned}:
                raise RuntimeError(f"request {group.request_id} has finished and is kept for ever")
        unfinished = [r for g in groups for r in g.requests if not r.finished]
        self.scheduler.check_integrity(unfinished)
        if self.drafter is not None:
            self.drafter.check_integrity(unfinished)

    # The loop.

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

    def _make_group(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        request_id: str | None,
        cache_salt: str | None,
    ) -> RequestGroup:
        if request_id is None:
            request_id = next(i for n in self._ids if (i := f"request-{n}") not in self._groups)
        longest = min(self.max_model_len, self.manager.max_sequence_tokens)
        return make_group(
            request_id,
            prompt,
            params,
            self.tokenizer,
            self.config,
            longest,
            cache_salt,
            self.output_rules.apply,
        )

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

    def _chunks(self, group: RequestGroup) -> Iterator[Chunk]:
        with self._one_thread:
            self._queue(group, owned=True)
        try:
            while not group.finished:
                with self._one_thread:
                    self._step()
                yield from self._new_chunks(group)
            # The end, and what it got from steps that others ran while this one was not asked.
            yield from self._new_chunks(group)
        finally:
            with self._one_thread:
                self._end([group])

    def _new_chunks(self, group: RequestGroup) -> list[Chunk]:
        chunks = group.output().chunks
        group.mark_delivered()
        return chunks
