"""Which tokens may follow a request's output: by an automaton, a list of ids, or several of these.

Introduced in chapter 12.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from lib.core.errors import InvalidRequest
from lib.core.token_constraint import TokenConstraint
from lib.engine.structured.automaton import DEAD
from lib.engine.structured.token_masks import TokenMasks


class AutomatonConstraint:
    """Follows one request's output through an automaton. See `lib.core.token_constraint.TokenConstraint`."""

    def __init__(self, masks: TokenMasks) -> None:
        self._masks = masks
        self._token_ids: list[int] = []  # read so far, drafts included
        self._states = [masks.automaton.start]  # before each of them, and after the last
        # Masks are computed by one thread while another runs the model.
        self._lock = threading.Lock()

    def allowed(self, output_token_ids: Sequence[int]) -> np.ndarray | None:
        with self._lock:
            state = self._state(output_token_ids)
            return None if state == DEAD else self._masks.allowed(state)

    def is_complete(self, output_token_ids: Sequence[int]) -> bool:
        with self._lock:
            automaton, state = self._masks.automaton, self._state(output_token_ids)
            return bool(automaton.accepting[state] and not automaton.table[state].any())

    def _state(self, output_token_ids: Sequence[int]) -> int:
        known = num_common(self._token_ids, output_token_ids)
        if known == len(output_token_ids):
            return self._states[known]  # tokens after it (drafts) are kept for the next call
        del self._token_ids[known:], self._states[known + 1 :]
        for token_id in output_token_ids[known:]:
            self._states.append(self._masks.after(self._states[-1], token_id))
            self._token_ids.append(token_id)
        return self._states[-1]


class AllowedTokens:
    """Allows only these ids, at every position."""

    def __init__(self, token_ids: Sequence[int], vocab_size: int) -> None:
        for token_id in token_ids:
            if token_id >= vocab_size:
                raise InvalidRequest(
                    f"allowed_token_ids must be < {vocab_size}, got {token_id}",
                    param="allowed_token_ids",
                )
        allowed = np.zeros(vocab_size, bool)
        allowed[list(token_ids)] = True
        self._bits = np.packbits(allowed, bitorder="little")

    def allowed(self, output_token_ids: Sequence[int]) -> np.ndarray:
        return self._bits

    def is_complete(self, output_token_ids: Sequence[int]) -> bool:
        return False


class AllOf:
    """Allows the tokens that all of several constraints allow."""

    def __init__(self, constraints: Sequence[TokenConstraint]) -> None:
        self._constraints = constraints

    def allowed(self, output_token_ids: Sequence[int]) -> np.ndarray | None:
        masks = [c.allowed(output_token_ids) for c in self._constraints]
        if any(mask is None for mask in masks):
            return None
        return np.bitwise_and.reduce(masks)

    def is_complete(self, output_token_ids: Sequence[int]) -> bool:
        return any(c.is_complete(output_token_ids) for c in self._constraints)


def num_common(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens at the beginning that are equal. Fast where one only continues the other."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(i for i in range(shorter) if first[i] != second[i])
