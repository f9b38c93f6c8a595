"""Gives each request what restricts its tokens, and computes masks while the model runs. Introduced in chapter 12."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from lib.core.batch import Scheduled
from lib.core.errors import InvalidRequest
from lib.core.request import Request
from lib.core.sampling_params import SamplingParams
from lib.core.token_constraint import TokenConstraint
from lib.engine.structured.automaton import from_choice, from_regex
from lib.engine.structured.constraints import AllOf, AllowedTokens, AutomatonConstraint
from lib.engine.structured.token_bytes import token_bytes
from lib.engine.structured.token_masks import TokenMasks
from lib.engine.structured.vocabulary import Vocabulary

MAX_SPEC = 65_536  # characters of a schema, a grammar or all choices together
MAX_CACHED_SPECS = 64  # compiled and kept, least recently used first to go


class OutputRules:
    """One engine's compiled schemas, regular expressions and grammars, and its requests' constraints.

    tokenizer: None where the model has none. end_ids: the model's EOS ids. Compiling takes
    milliseconds to seconds, so what was compiled is kept. `prepare` may be called in another thread
    than the engine's: a server compiles there, and the engine finds it done.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, end_ids: Iterable[int]) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._end_ids = [i for i in end_ids if i < vocab_size]
        self._compiled: OrderedDict[tuple[str, str], Callable[[], TokenConstraint]] = OrderedDict()
        self._vocabulary: Vocabulary | None = None
        self._grammars: Any = None
        self._worker: ThreadPoolExecutor | None = None
        self._lock, self._compiling = threading.Lock(), threading.Lock()

    def prepare(self, params: SamplingParams) -> None:
        """Compile what `params` ask for, so that `apply` finds it. Raises InvalidRequest as `apply` would."""
        if params.structured_outputs is not None:
            ((kind, spec),) = params.structured_outputs.items()
            self._maker(kind, spec)

    def apply(self, requests: Sequence[Request]) -> None:
        """Set each request's constraint and bad words. Raises InvalidRequest, naming the field."""
        for request in requests:
            request.constraint = self._constraint(request.params)
            request.bad_words_token_ids = self._bad_words(request.params)

    @contextmanager
    def masks_meanwhile(self, scheduled: Sequence[Scheduled]) -> Iterator[None]:
        """Computes the masks of a step in another thread, while the block runs the model.

        Constraints keep them until the sampler asks. Nothing is computed where no request needs it.
        """
        rows = [s for s in scheduled if s.request.constraint is not None and s.completes]
        if not rows:
            yield
            return
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "masks")
        work = self._worker.submit(_compute_masks, rows)
        try:
            yield
        finally:
            work.result()

    def _constraint(self, params: SamplingParams) -> TokenConstraint | None:
        found: list[TokenConstraint] = []
        if params.allowed_token_ids is not None:
            found.append(AllowedTokens(params.allowed_token_ids, self._vocab_size))
        if params.structured_outputs is not None:
            ((kind, spec),) = params.structured_outputs.items()
            found.append(self._maker(kind, spec)())
        return None if not found else found[0] if len(found) == 1 else AllOf(found)

    def _bad_words(self, params: SamplingParams) -> list[list[int]]:
        """Each word as tokens, at the beginning of a text and after a space (as in vLLM)."""
        if params.bad_words and self._tokenizer is None:
            raise InvalidRequest(
                "bad_words must be empty for a model without a tokenizer, got "
                f"{params.bad_words!r}",
                param="bad_words",
            )
        found = [
            self._tokenizer.encode(space + word.lstrip(), add_special_tokens=False)
            for word in params.bad_words
            for space in ("", " ")
        ]
        return [ids for ids in found if ids]

    def _maker(self, kind: str, spec: Any) -> Callable[[], TokenConstraint]:
        """What makes constraints of this kind; compiled at the first call."""
        try:
            text = spec if isinstance(spec, str) else json.dumps(spec, ensure_ascii=False)
        except RecursionError:
            raise InvalidRequest(
                f"structured_outputs.{kind} must not nest as deeply", param="structured_outputs"
            ) from None
        if len(text) > MAX_SPEC:
            raise InvalidRequest(
                f"structured_outputs.{kind} must have at most {MAX_SPEC:,} characters, "
                f"got {len(text):,}",
                param="structured_outputs",
            )
        if self._tokenizer is None:
            raise InvalidRequest(
                "structured_outputs must be None for a model without a tokenizer, got "
                f"{{{kind!r}: ...}}",
                param="structured_outputs",
            )
        key = kind, text
        if (maker := self._kept(key)) is not None:
            return maker
        with self._compiling:
            if (maker := self._kept(key)) is not None:  # compiled by another thread meanwhile
                return maker
            maker = self._compile(kind, spec)
            first = maker().allowed([])
            if first is None or not first.any():
                raise InvalidRequest(
                    f"structured_outputs.{kind} allows no first token, or finding out takes too long",
                    param="structured_outputs",
                )
            with self._lock:
                self._compiled[key] = maker
                if len(self._compiled) > MAX_CACHED_SPECS:
                    self._compiled.popitem(last=False)
            return maker

    def _kept(self, key: tuple[str, str]) -> Callable[[], TokenConstraint] | None:
        with self._lock:
            if key in self._compiled:
                self._compiled.move_to_end(key)
            return self._compiled.get(key)

    def _compile(self, kind: str, spec: Any) -> Callable[[], TokenConstraint]:
        if kind in ("regex", "choice"):
            if self._vocabulary is None:
                tokens = token_bytes(self._tokenizer, self._vocab_size)
                self._vocabulary = Vocabulary(tokens, self._end_ids)
            automaton = from_regex(spec) if kind == "regex" else from_choice(spec)
            masks = TokenMasks(automaton, self._vocabulary)
            return lambda: AutomatonConstraint(masks)
        if self._grammars is None:
            from lib.engine.structured.grammars import Grammars

            self._grammars = Grammars(self._tokenizer, self._vocab_size, self._end_ids)
        return self._grammars.compile(kind, spec)


def _compute_masks(scheduled: Sequence[Scheduled]) -> None:
    for item in scheduled:
        for n in range(1 + len(item.draft_token_ids)):
            item.request.allowed(item.draft_token_ids[:n])
