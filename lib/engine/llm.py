"""The engine as its users see it, and the loop at its heart: schedule, build, run, sample, update.

Introduced in chapter 1. Later chapters change the parts (`lib.engine.assemble`), not this loop.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Sequence
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
from lib.engine.assemble import assemble
from lib.engine.prompts import as_token_ids, chat_token_ids
from lib.engine.request_group import RequestGroup
from lib.engine.sampling import sample
from lib.models.checkpoint import load_model

Prompt = str | Sequence[int]


class LLM:
    """A model and an engine around it. Not thread-safe: one thread owns it.

    Its arguments are the fields of `lib.core.engine_options.EngineOptions`, where each is documented.
    Raises ValueError for arguments that are out of range, do not go together or do not fit into
    memory.
    """

    __signature__ = inspect.signature(EngineOptions)

    def __init__(self, model: str | Path = "smollm2", **options: Any) -> None:
        self.options = EngineOptions(model, **options)
        self.device = pick_device(self.options.device)
        self.dtype = pick_dtype(self.options.dtype, self.device)
        loaded = load_model(model, device=self.device, dtype=self.dtype)
        self.model, self.tokenizer, self.weights = loaded.model, loaded.tokenizer, loaded.weights
        self.config, self.folder = loaded.config, loaded.folder
        engine = assemble(self.model, self.options, self.device, self.dtype)
        self.runner, self.scheduler, self.manager = engine.runner, engine.scheduler, engine.manager
        self.kv_cache, self.max_model_len = engine.kv_cache, engine.max_model_len
        self.compile_seconds = engine.compile_seconds  # 0 where nothing was compiled
        self.packed_linears = engine.packed_linears
        self._groups: dict[str, RequestGroup] = {}  # unfinished, or finished and not yet handed out
        self._progressed: dict[
            str, None
        ] = {}  # ids with something for `step` to hand out, in order
        self._owned: set[str] = set()  # ids that generate or stream waits for
        self._ids = itertools.count()
        self._steps = self._tokens = self._finished = 0

    # Requests in, outputs out. What `generate` and `stream` queue is theirs: `step` runs it and leaves its outputs alone.

    def add_request(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        request_id: str | None = None,
        cache_salt: str | None = None,
    ) -> str:
        """Queue a prompt; returns its id. Raises ValueError, and queues nothing, if it can never be served.

        `cache_salt`: the prompt shares cached prefixes with prompts of the same salt only.
        """
        return self._queue(self._make_group(prompt, params, request_id, cache_salt))

    def has_unfinished(self) -> bool:
        """Whether `step` has anything left to do or to hand out."""
        return self.scheduler.has_unfinished or bool(self._progressed)

    def step(self) -> list[RequestOutput]:
        """One pass through the model. Returns the outputs of requests that progressed or ended."""
        self._step()
        outputs = [self._groups[request_id].output() for request_id in self._progressed]
        self._progressed.clear()
        for output in outputs:
            if output.finished:
                del self._groups[output.request_id]
        return outputs

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request now, whatever its state, and free its room. Returns its output, or None if there is none."""
        group = self._groups.pop(request_id, None)
        if group is None:
            return None
        self._progressed.pop(request_id, None)
        self._owned.discard(request_id)
        unfinished = [request for request in group.requests if not request.finished]
        self.scheduler.release(unfinished)
        for request in unfinished:
            request.finish("abort")
        self._finished += len(unfinished)
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
            len(prompts) > 0 and all(isinstance(p, int) for p in prompts)
        ):
            prompts = [prompts]
        if not isinstance(params, Sequence):
            params = [params] * len(prompts)
        if len(params) != len(prompts):
            raise ValueError(
                f"params must be one or one a prompt, got {len(params)} for {len(prompts)} prompts"
            )
        # All are checked before the first is queued: an error leaves nothing behind.
        groups = [self._make_group(p, s, None, cache_salt) for p, s in zip(prompts, params)]
        ids = [group.request_id for group in groups]
        try:
            for group in groups:
                self._queue(group, owned=True)
            with tqdm(total=len(ids), disable=not use_tqdm, unit="prompt") as bar:
                unfinished = set(ids)
                while unfinished:
                    done = {
                        r.request_id for r in self._step() if self._groups[r.request_id].finished
                    }
                    unfinished -= done
                    bar.update(len(ids) - len(unfinished) - bar.n)
            return [self._groups[i].output() for i in ids]
        finally:
            for (
                request_id
            ) in ids:  # finished ones are forgotten, unfinished ones (an interrupt) end here
                self.abort(request_id)

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        cache_salt: str | None = None,
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
        self.manager.reset()

    def stats(self) -> dict[str, Any]:
        """Counts of this moment, and since the start: preemptions, steps, tokens computed, requests finished."""
        manager = self.manager
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
            "steps": self._steps,
            "tokens_computed": self._tokens,
            "requests_finished": self._finished,
            "kv_cache_bytes": self.kv_cache.nbytes if self.kv_cache else 0,
            "max_model_len": self.max_model_len,
            "packed_linears": self.packed_linears,
        }

    # The loop.

    def _step(self) -> list[Request]:
        """Schedule, build, run, sample, update. Returns the requests that have a new token."""
        scheduled = self.scheduler.schedule()
        if not scheduled:
            return []  # a `step` that only hands out what `generate` computed on the way
        batch = Batch.build(scheduled, self.manager.block_size, self.device)
        logits = self.runner.run(batch)
        # A request whose tokens are all computed after this step has a next one; in the middle of a prompt it has not.
        rows = [
            row
            for row, s in enumerate(scheduled)
            if s.request.num_computed_tokens + s.num_tokens == s.request.num_tokens
        ]
        requests = [scheduled[row].request for row in rows]
        token_ids, logprobs = [], []
        if requests:
            token_ids, logprobs = sample(
                logits if len(rows) == len(scheduled) else logits[rows], requests
            )
        # Only now, when all that can fail or be interrupted is over: else a request would count as computed and lack a token.
        self.scheduler.update(scheduled)
        self._steps, self._tokens = self._steps + 1, self._tokens + len(batch.input_ids)
        for request, token_id, logprob in zip(requests, token_ids, logprobs):
            if logprob is not None:
                request.logprobs.append(logprob)
            request.append(token_id)
            if self._groups[request.request_id].check_stop_strings(request.index):
                request.finish("stop")
            if request.request_id not in self._owned:
                self._progressed[request.request_id] = None
        finished = [request for request in requests if request.finished]
        self.scheduler.release(finished)
        self._finished += len(finished)
        return requests

    def _make_group(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        request_id: str | None,
        cache_salt: str | None = None,
    ) -> RequestGroup:
        params = SamplingParams() if params is None else params
        if not isinstance(params, SamplingParams):
            raise ValueError(f"params must be SamplingParams or None, got {params!r}")
        if request_id is None:
            request_id = next(i for n in self._ids if (i := f"request-{n}") not in self._groups)
        if not isinstance(request_id, str) or not request_id:
            raise ValueError(f"request_id must be a string, not empty, or None, got {request_id!r}")
        if cache_salt is not None and (not isinstance(cache_salt, str) or not cache_salt):
            raise InvalidRequest(
                f"cache_salt must be a string, not empty, or None, got {cache_salt!r}",
                param="cache_salt",
            )
        token_ids = as_token_ids(prompt, self.tokenizer, self.config.vocab_size)
        limit = min(self.max_model_len, self.manager.max_sequence_tokens)
        if len(token_ids) + params.max_tokens > limit:
            raise ValueError(
                f"prompt ({len(token_ids)} tokens) + max_tokens ({params.max_tokens}) must be <= {limit} "
                f"tokens, the longest sequence of this engine, got {len(token_ids) + params.max_tokens}"
            )
        if params.stop and self.tokenizer is None:
            raise ValueError(
                f"stop must be empty for a model without a tokenizer, got {params.stop!r}"
            )
        for token_id in params.stop_token_ids:
            if token_id >= self.config.vocab_size:
                raise ValueError(
                    f"stop_token_ids must be < {self.config.vocab_size}, got {token_id}"
                )
        eos = () if params.ignore_eos else self.config.eos_token_ids
        stop_ids = frozenset(
            i for i in (*eos, *params.stop_token_ids) if i < self.config.vocab_size
        )
        requests = [
            Request(request_id, token_ids, params, stop_ids, index, cache_salt)
            for index in range(params.n)
        ]
        return RequestGroup(
            request_id, prompt if isinstance(prompt, str) else None, requests, self.tokenizer
        )

    def _queue(self, group: RequestGroup, owned: bool = False) -> str:
        if group.request_id in self._groups:
            raise ValueError(
                f"request_id must be new, got {group.request_id!r}, which is still being served"
            )
        self._groups[group.request_id] = group
        if owned:
            self._owned.add(group.request_id)
        for request in group.requests:
            self.scheduler.add(request)
        return group.request_id

    def _chunks(self, group: RequestGroup) -> Iterator[Chunk]:
        self._queue(group, owned=True)
        try:
            while not group.finished:
                self._step()
                yield from group.output().chunks
            yield from group.output().chunks  # what it got from steps that others ran while this one was not asked
        finally:
            self.abort(group.request_id)
