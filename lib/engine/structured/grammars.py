"""JSON schemas and context-free grammars by the library llguidance, behind the interface of our own automata.

Introduced in chapter 12, which compares it with another library. It is optional: `pip install llguidance`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lib.core.errors import InvalidRequest
from lib.engine.structured.constraints import num_common

KEPT_MASKS = 64  # of one request: more than there are drafts in a step
# JSON as models write it. With free whitespace a model may add spaces for ever and never end.
_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammars:
    """Compiles schemas and grammars for one vocabulary. Raises InvalidRequest where llguidance is not installed."""

    def __init__(self, tokenizer: Any, vocab_size: int, end_ids: Sequence[int]) -> None:
        try:
            import llguidance.hf
        except ImportError:
            raise InvalidRequest(
                "structured_outputs with json or grammar needs the package llguidance, which is "
                "not installed: pip install llguidance (regex and choice work without it)",
                param="structured_outputs",
            ) from None
        ends = list(end_ids) or [tokenizer.eos_token_id]
        self._tokenizer = llguidance.hf.from_tokenizer(
            tokenizer, n_vocab=vocab_size, eos_token=ends
        )
        self._end_ids = set(ends)
        self._mask_bytes = (vocab_size + 7) // 8  # llguidance rounds up to words of 32 bits

    def compile(self, kind: str, spec: Any) -> Callable[[], GrammarConstraint]:
        """A maker of constraints. kind: "json" (a schema, as dict or text, or True) or "grammar" (Lark's syntax).

        Raises InvalidRequest for what is no schema or grammar, what llguidance does not implement (it
        never ignores a keyword) and what exceeds its limits.
        """
        from llguidance import LLMatcher

        try:
            if kind == "json":
                spec = json.loads(spec) if isinstance(spec, str) else spec
                schema = {"type": "object"} if spec is True else spec
                if not isinstance(schema, dict):
                    raise ValueError(f"a JSON schema must be an object, got {schema!r}")
                grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_JSON)
            else:
                grammar = LLMatcher.grammar_from_lark(spec)
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
            problem = matcher.get_error() if matcher.is_error() else ""
        except (ValueError, RecursionError) as error:
            problem = str(error) or "nested too deeply"
        if problem:
            raise InvalidRequest(
                f"structured_outputs.{kind} cannot be used: {problem[:500]}",
                param="structured_outputs",
            )
        return lambda: GrammarConstraint(matcher.deep_copy(), self._end_ids, self._mask_bytes)


class GrammarConstraint:
    """Follows one request's output through llguidance's matcher, forwards and back.

    See `lib.core.token_constraint.TokenConstraint`.
    """

    def __init__(self, matcher: Any, end_ids: set[int], mask_bytes: int) -> None:
        self._matcher, self._end_ids, self._mask_bytes = matcher, end_ids, mask_bytes
        self._token_ids: list[int] = []  # what the matcher has read, drafts included
        # By number of tokens read: the masks after drafts are asked for twice.
        self._masks: dict[int, np.ndarray] = {}
        # Masks are computed by one thread while another runs the model.
        self._lock = threading.Lock()

    def allowed(self, output_token_ids: Sequence[int]) -> np.ndarray | None:
        with self._lock:
            return self._mask(output_token_ids)

    def is_complete(self, output_token_ids: Sequence[int]) -> bool:
        with self._lock:
            if not self._read(output_token_ids) or not self._matcher.is_accepting():
                return False
            bits = np.unpackbits(self._mask(output_token_ids), bitorder="little")
            bits[list(self._end_ids)] = 0
            return not bits.any()

    def _mask(self, output_token_ids: Sequence[int]) -> np.ndarray | None:
        length = len(output_token_ids)
        if length in self._masks and self._token_ids[:length] == list(output_token_ids):
            return self._masks[length]
        if not self._read(output_token_ids):
            return None
        mask = np.zeros(self._mask_bytes, np.uint8)
        found = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)[: self._mask_bytes]
        if not self._matcher.is_error():  # else at a limit of the library: the request fails alone
            mask[: len(found)] = found
        self._masks = {n: m for n, m in self._masks.items() if n > length - KEPT_MASKS}
        self._masks[length] = mask
        return mask

    def _read(self, output_token_ids: Sequence[int]) -> bool:
        """Bring the matcher to this output. False if the grammar does not allow it."""
        known = num_common(self._token_ids, output_token_ids)
        if known < len(self._token_ids):
            self._matcher.rollback(len(self._token_ids) - known)
            del self._token_ids[known:]
            self._masks = {n: m for n, m in self._masks.items() if n <= known}
        for token_id in output_token_ids[known:]:
            if not self._matcher.validate_tokens([token_id]):
                return False
            self._matcher.consume_token(token_id)
            self._token_ids.append(token_id)
        return True
