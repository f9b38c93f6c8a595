"""Drafts copied from the sequence itself: prompt lookup decoding. Introduced in chapter 10.

Saxena 2023, "Prompt Lookup Decoding"; vLLM calls the method "ngram".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numba import njit

from lib.core.request import Request
from lib.engine.speculation.proposer import Draft


class NgramProposer:
    """Finds the longest suffix of a sequence that occurs earlier in it; drafts what followed there.

    The suffix has at most `prompt_lookup_max` and at least `prompt_lookup_min` tokens. Of several
    occurrences of the longest one, the most recent counts (vLLM takes the earliest), since recent
    text is assumed to be more like the text to come. Example, with suffixes of 1 to 3 tokens and
    up to 4 draft tokens:

        position   0 1 2 3 4 5 6 7 8
        token      7 1 2 3 9 1 4 1 2       suffix [4 1 2]: does not occur earlier
                     ^ ^                   suffix [1 2]: occurs at positions 1 and 2
                         3 9 1 4           the draft: the tokens at positions 3 to 6

    Where the draft reaches the end of the sequence, it goes on with its own beginning, as if the
    text since the occurrence repeated. [5 6 5 6] has the suffix [5 6] at position 0, so its draft
    is 5 6 5 6, not only 5 6.

    State per request: its tokens as an array, to which each call adds the new ones. A search reads
    the array once from its end, and stops early where it finds the longest suffix allowed.
    """

    cost_coefficient = 0.0

    def __init__(self, prompt_lookup_min: int, prompt_lookup_max: int) -> None:
        self.shortest, self.longest = prompt_lookup_min, prompt_lookup_max
        self._texts: dict[Request, _Text] = {}
        _find(np.zeros(2, np.int64), 2, 1, 1)  # compiled now, not in the first step

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Draft]:
        drafts = []
        for request, limit in zip(requests, limits, strict=True):
            text = self._texts.get(request)
            if text is None:
                text = self._texts[request] = _Text()
            text.catch_up(request.token_ids)
            drafts.append(Draft(self._copy(text, limit)))
        return drafts

    def free(self, request: Request) -> None:
        self._texts.pop(request, None)

    def forget_cached(self) -> None:
        """Nothing is kept of ended requests."""

    def reset(self) -> None:
        self._texts.clear()

    def check_integrity(self, unfinished: Iterable[Request]) -> None:
        if gone := self._texts.keys() - set(unfinished):
            ids = sorted(request.request_id for request in gone)
            raise RuntimeError(f"texts are kept of requests {ids}, which are not unfinished")
        for request, text in self._texts.items():
            if text.array[: text.length].tolist() != request.token_ids[: text.length]:
                raise RuntimeError(f"the text kept of request {request.request_id} is another one")

    def _copy(self, text: _Text, limit: int) -> tuple[int, ...]:
        start = _find(text.array, text.length, self.shortest, self.longest)
        if start < 0:
            return ()
        copied = text.array[start : min(start + limit, text.length)].tolist()
        period = text.length - start
        while len(copied) < limit:
            copied += copied[len(copied) - period : limit - period]
        return tuple(copied)


class _Text:
    """A request's tokens as int64 [length], in an array that has room for more."""

    def __init__(self) -> None:
        self.array, self.length = np.empty(64, np.int64), 0

    def catch_up(self, token_ids: Sequence[int]) -> None:
        end = len(token_ids)
        if end > len(self.array):
            grown = np.empty(2 * end, np.int64)
            grown[: self.length] = self.array[: self.length]
            self.array = grown
        self.array[self.length : end] = token_ids[self.length :]
        self.length = end


@njit(nogil=True)
def _find(tokens, num_tokens, shortest, longest):
    """Position after the most recent occurrence of the longest suffix; -1 if there is none.

    tokens: int64, the first `num_tokens` count. An occurrence may overlap with the suffix.
    """
    last = num_tokens - 1
    best, after = shortest - 1, -1
    for end in range(last - 1, -1, -1):
        if end + 1 <= best:
            break  # what is left is shorter than what was found
        length = 0
        while length < longest and length <= end and tokens[end - length] == tokens[last - length]:
            length += 1
        if length > best:
            best, after = length, end + 1
            if best == longest:
                break
    return after
