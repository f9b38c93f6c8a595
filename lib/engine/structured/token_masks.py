"""Which tokens an automaton allows in each of its states. Introduced in chapter 12.

Willard and Louf 2023 ("Efficient Guided Generation for Large Language Models", Outlines) index the vocabulary by state.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from lib.engine.structured.automaton import DEAD, Automaton

MAX_CACHED_MASKS = 1_024  # per automaton; 49,152 tokens are 6 KB each


class Vocabulary:
    """All tokens' bytes as one matrix, column by column, so that they are read together.

    token_bytes: of each id; b"" for ids that stand for no text, which no automaton allows.
    end_ids: the ids that end a text (EOS).
    """

    def __init__(self, token_bytes: Sequence[bytes], end_ids: Iterable[int]) -> None:
        self.size, self.token_bytes = len(token_bytes), list(token_bytes)
        self.end_ids = sorted(i for i in set(end_ids) if i < self.size)
        # A text can be written if each of its bytes is a token: in a byte-level BPE or with byte fallback, each
        # byte that occurs in a token is also a token of its own.
        self.single_bytes = {data[0] for data in token_bytes if len(data) == 1}
        lengths = np.array([len(data) for data in token_bytes])
        self.order = np.argsort(-lengths, kind="stable")  # longest first
        longest = int(lengths.max(initial=0))
        # How many of the tokens in `order` have a byte in each column.
        self.counts = [int((lengths > column).sum()) for column in range(longest)]
        matrix = np.zeros((longest, self.size), np.uint8)
        for row, token in enumerate(self.order[: self.counts[0] if longest else 0]):
            data = token_bytes[token]
            matrix[: len(data), row] = np.frombuffer(data, np.uint8)
        self.columns = [matrix[c, :n].copy() for c, n in enumerate(self.counts)]

    def walk(self, automaton: Automaton, state: int) -> np.ndarray:
        """The state after each token from `state` on, [size] int32; DEAD for those without text."""
        states = np.full(self.size, DEAD, np.int32)
        if not self.counts:
            return states
        states[: self.counts[0]] = state
        for count, column in zip(self.counts, self.columns):
            # Most tokens reach DEAD with their first byte, and stay there: only the others go on.
            alive = np.flatnonzero(states[:count])
            states[alive] = automaton.table[states[alive], column[alive]]
        after = np.empty_like(states)
        after[self.order] = states
        return after


class TokenMasks:
    """Masks of one automaton over one vocabulary, computed when a state is first reached, then kept.

    Raises InvalidRequest if the vocabulary can write none of the automaton's texts.
    """

    def __init__(self, automaton: Automaton, vocabulary: Vocabulary) -> None:
        self.automaton = automaton.restricted_to(vocabulary.single_bytes)
        self.vocabulary = vocabulary
        self._masks: OrderedDict[int, np.ndarray] = OrderedDict()

    def allowed(self, state: int) -> np.ndarray:
        """Token ids that may follow in `state`, as bits [ceil(size / 8)] uint8, lowest id first.

        A token is allowed if the text can still be completed after it. The ids that end a text are
        allowed exactly where it may end.
        """
        if state in self._masks:
            self._masks.move_to_end(state)
            return self._masks[state]
        allowed = self.vocabulary.walk(self.automaton, state) != DEAD
        if self.automaton.accepting[state]:
            allowed[self.vocabulary.end_ids] = True
        self._masks[state] = np.packbits(allowed, bitorder="little")
        if len(self._masks) > MAX_CACHED_MASKS:
            self._masks.popitem(last=False)
        return self._masks[state]

    def after(self, state: int, token_id: int) -> int:
        """The state after a token: DEAD where it is not allowed. An id that ends the text changes nothing."""
        if token_id in self.vocabulary.end_ids:
            return state if self.automaton.accepting[state] else DEAD
        data = self.vocabulary.token_bytes[token_id]
        return self.automaton.read(state, data) if data else DEAD
