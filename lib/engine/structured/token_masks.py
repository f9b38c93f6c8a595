"""Which tokens an automaton allows in each of its states. Introduced in chapter 12.

Willard and Louf 2023 ("Efficient Guided Generation for Large Language Models", Outlines) index the vocabulary by state.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from lib.engine.structured.automaton import DEAD, Automaton
from lib.engine.structured.vocabulary import Vocabulary

MAX_CACHED_MASKS = 1_024  # per automaton; 49,152 tokens are 6 KB each


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
        allowed = self.vocabulary.walk(self.automaton, state)
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
