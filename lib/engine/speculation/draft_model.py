"""Drafts by another, smaller model with the same vocabulary. Introduced in chapter 10.

Leviathan et al. 2023; Chen et al. 2023.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lib.cache.kv_cache import KVCache
from lib.cache.manager import CacheManager
from lib.core.request import Request, Status
from lib.engine.runner import ModelRunner
from lib.engine.speculation.draft_loop import DraftLoop, DraftSequence
from lib.engine.speculation.draft_sampling import draft_sampler
from lib.engine.speculation.proposer import Draft


class DraftModelProposer:
    """Drafts with a model that has a cache of its own, `kv_cache`, allocated by its own `manager`.

    The cache follows the request: `propose` computes the tokens that it lacks, in the pass that
    drafts the first token. After a verified draft these are one or two tokens. When a request
    begins to draft, or was preempted, they are all its tokens that the draft model's own prefix
    cache does not hold. A request that the cache has no room for gets no draft and holds nothing.

    max_model_len: number of positions of the draft model. cost_coefficient: see `Proposer`.
    """

    def __init__(
        self,
        runner: ModelRunner,
        manager: CacheManager,
        kv_cache: KVCache,
        max_model_len: int,
        max_num_batched_tokens: int,
        cost_coefficient: float,
        draft_sample_method: str = "greedy",
    ) -> None:
        self.manager, self.kv_cache = manager, kv_cache
        self.cost_coefficient = cost_coefficient
        self._longest = min(max_model_len, manager.max_sequence_tokens)
        self.loop = DraftLoop(
            runner,
            draft_sampler(draft_sample_method),
            manager.block_size,
            max_num_batched_tokens,
            kv_cache.k.device,
        )
        self._sequences: dict[Request, DraftSequence] = {}

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Draft]:
        """See `Proposer`.

        A preempted request gives its blocks back and is computed again when it runs.
        """
        for request in [r for r in self._sequences if r.status is not Status.RUNNING]:
            self.free(request)
        room = [self._make_room(request, n) for request, n in zip(requests, limits, strict=True)]
        drafting = [request for request, n in zip(requests, room) if n]
        sequences = [self._sequences[request] for request in drafting]
        drafts = dict(zip(drafting, self.loop.draft(sequences, [n for n in room if n])))
        for sequence in sequences:
            if not sequence.finite:
                self._empty(sequence)
        return [drafts.get(request, Draft()) for request in requests]

    def free(self, request: Request) -> None:
        """Give back what the request holds; nothing happens if it holds nothing."""
        if (sequence := self._sequences.get(request)) is not None:
            self.manager.free(sequence)
            del self._sequences[request]

    def forget_cached(self) -> None:
        """Forget the content of blocks that no running request uses."""
        self.manager.forget_cached()

    def reset(self) -> None:
        """Forget all requests: the cache is empty."""
        self._sequences.clear()
        self.manager.reset()

    def check_integrity(self, unfinished: Iterable[Request]) -> None:
        """Raise RuntimeError unless all blocks belong to `unfinished` requests.

        Each request must have blocks for all of its computed tokens.
        """
        sequences = self._sequences.values()
        if gone := set(self._sequences) - set(unfinished):
            names = sorted(request.request_id for request in gone)
            raise RuntimeError(f"the draft model's cache holds requests that have ended: {names}")
        for sequence in sequences:
            if sequence.num_computed_tokens > len(sequence.block_ids) * self.manager.block_size:
                raise RuntimeError(
                    f"request {sequence.request_id} has {sequence.num_computed_tokens} tokens in "
                    f"{len(sequence.block_ids)} blocks of the draft model's cache"
                )
        self.manager.check_integrity(sequences)

    def _make_room(self, request: Request, limit: int) -> int:
        """Drafts that there is room for, at most `limit`; their blocks are allocated.

        The last draft needs no slot: its keys and values are not computed.
        """
        sequence = self._sequences.get(request)
        if sequence is None:
            sequence = self._sequences[request] = DraftSequence(request, 0, [])
        if not sequence.finite:  # the model computes NaN from these tokens, and would again
            return 0
        sequence.follow_request()
        limit = min(limit, self._longest - sequence.num_tokens + 1)
        if sequence.block_ids:
            self.manager.publish(sequence)  # of drafts nothing: there are none now
        else:
            num_cached = self.manager.admit(sequence) if limit > 0 else None
            if num_cached is None:
                return 0
            sequence.num_computed_tokens = num_cached
        while limit > 0 and not self.manager.allocate(sequence, sequence.num_tokens + limit - 1):
            limit -= 1
        if limit <= 0:
            self._empty(sequence)
        return max(0, limit)

    def _empty(self, sequence: DraftSequence) -> None:
        """Give its blocks back, without NaN.

        Masked reads of the blocks' next owner multiply their content by 0, and 0 times NaN is NaN.
        """
        if not sequence.finite:
            self.kv_cache.remove_non_finite(sequence.block_ids, sequence.num_computed_tokens)
        self.manager.free(sequence)
        sequence.num_computed_tokens = 0


def check_same_vocabulary(
    vocab_size: int, draft_vocab_size: int, tokenizer: Any, draft_tokenizer: Any
) -> None:
    """Raise ValueError unless each token id stands for the same token in both models.

    The sizes must be equal, and where both have a tokenizer, all tokens of the two as well. Where
    one has none, the ids are assumed to agree.
    """
    name = "speculative_config.model"
    if vocab_size != draft_vocab_size:
        raise ValueError(
            f"{name} must have the model's vocabulary of {vocab_size} tokens, "
            f"got a model with {draft_vocab_size}"
        )
    if tokenizer is None or draft_tokenizer is None:
        return
    ours, theirs = ({i: t for t, i in x.get_vocab().items()} for x in (tokenizer, draft_tokenizer))
    different = sorted(i for i in ours.keys() | theirs.keys() if ours.get(i) != theirs.get(i))
    if different:
        i = different[0]
        raise ValueError(
            f"{name} must have the model's tokens, got a tokenizer in which {len(different)} "
            f"differ: id {i} is {theirs.get(i)!r} instead of {ours.get(i)!r}"
        )
