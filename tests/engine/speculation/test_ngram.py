"""Drafts copied from the sequence: against a search that tries everything."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import SamplingParams
from lib.core.request import Request
from lib.engine.speculation.ngram import NgramProposer


def request_of(token_ids, request_id="r") -> Request:
    return Request(request_id, list(token_ids), SamplingParams())


def draft(token_ids, limit=4, shortest=1, longest=3) -> list[int]:
    (found,) = NgramProposer(shortest, longest).propose([request_of(token_ids)], [limit])
    assert found.probs is None
    return list(found.token_ids)


def brute_force(token_ids, limit, shortest, longest) -> list[int]:
    """All lengths, longest first; all places, latest first; then token by token."""
    for length in range(min(longest, len(token_ids) - 1), shortest - 1, -1):
        suffix = token_ids[len(token_ids) - length :]
        for start in range(len(token_ids) - length - 1, -1, -1):
            if token_ids[start : start + length] == suffix:
                text = list(token_ids)
                for place in range(limit):
                    text.append(text[start + length + place])
                return text[len(token_ids) :]
    return []


@pytest.mark.parametrize("token_ids, expected", [
    ([7, 1, 2, 3, 9, 1, 4, 1, 2], [3, 9, 1, 4]),  # the docstring's
    ([5, 6, 5, 6], [5, 6, 5, 6]),  # it goes on with itself
    ([8, 8], [8, 8, 8, 8]),
    ([1, 2, 3, 1, 2, 4, 1, 2], [4, 1, 2, 4]),  # the most recent of two
    ([3, 1, 2, 5, 6, 9, 1, 2, 7, 7, 3, 1, 2], [5, 6, 9, 1]),  # a longer one before a later one
    ([1, 2, 3, 4], []),
    ([1], []),
])  # fmt: skip
def test_examples(token_ids, expected):
    assert draft(token_ids) == expected == brute_force(token_ids, 4, 1, 3)


def test_a_suffix_that_is_too_short_is_no_match():
    assert draft([1, 2, 9, 2], shortest=2) == []
    assert draft([1, 2, 9, 1, 2], shortest=2) == [9, 1, 2, 9]
    assert draft([1, 2, 9, 1, 2], limit=1) == [9]


@settings(max_examples=400)
@given(
    token_ids=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    limit=st.integers(1, 9),
    lengths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_as_the_search_that_tries_everything(token_ids, limit, lengths):
    shortest, longest = sorted(lengths)
    expected = brute_force(token_ids, limit, shortest, longest)
    assert draft(token_ids, limit, shortest, longest) == expected


def test_a_text_that_grows_between_the_calls():
    """Several requests at once; some calls come after several new tokens, and some requests are left out of a call."""
    rng = random.Random(0)
    proposer = NgramProposer(2, 3)
    requests = [request_of([rng.randrange(4) for _ in range(1 + 40 * i)], f"r{i}") for i in range(4)]  # fmt: skip
    for _ in range(60):
        some = rng.sample(requests, 2)
        limits = [rng.randint(1, 5) for _ in some]
        for request, limit, found in zip(some, limits, proposer.propose(some, limits), strict=True):
            assert list(found.token_ids) == brute_force(request.token_ids, limit, 2, 3)
        for request in requests:
            request.token_ids += [rng.randrange(4) for _ in range(rng.randint(0, 5))]
        proposer.check_integrity(requests)


def test_nothing_is_kept_for_ever():
    proposer = NgramProposer(1, 2)
    first, second = request_of([1, 2, 1]), request_of([3, 3])
    proposer.propose([first, second], [1, 1])
    with pytest.raises(RuntimeError, match="not unfinished"):
        proposer.check_integrity([first])
    proposer.free(second), proposer.free(second)
    proposer.check_integrity([first])
    first.token_ids[1] = 5
    with pytest.raises(RuntimeError, match="another one"):
        proposer.check_integrity([first])
    proposer.reset()
    proposer.check_integrity([])
